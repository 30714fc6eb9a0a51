"""Regular expressions that come from files: refused where matching could take for ever."""

from __future__ import annotations

import re
from typing import Any, Iterator

try:
    from re import _parser as sre_parse
except ImportError:  # before Python 3.11
    import sre_parse

LONGEST = 1 << 14  # characters
MOST_REPEATS = 4  # "*", "+" or "{m,n}", one after the other


def wrong_pattern(pattern: Any) -> str | None:
    """Why this may not be used as a regular expression on the names of modules; None if it may.

    Python's matching goes back and tries again, which takes years for some expressions. Refused are a repetition
    within a repetition, and more than a few of them.
    """
    if not isinstance(pattern, str) or len(pattern) > LONGEST:
        return "expected a regular expression"
    try:
        tree = sre_parse.parse(pattern)
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression ({error})"
    repeats, nested = _repeats(tree, within=False)
    if nested:
        return "expected a regular expression without choices or repetitions within repetitions"
    return f"expected a regular expression of at most {MOST_REPEATS} repetitions" if repeats > MOST_REPEATS else None


def _repeats(tree: Any, within: bool) -> tuple[int, bool]:
    """How many repetitions follow each other, and whether one of them has a choice within it.

    Args:
        tree: operators with their arguments, as `re` parses an expression.
        within: is it within a repetition?
    """
    count, nested = 0, False
    for operator, argument in tree:
        kind = str(operator)
        repeated = kind.endswith("_REPEAT")
        nested = nested or within and (kind == "BRANCH" or repeated and argument[0] != argument[1])
        inner = within or repeated and argument[1] > 1
        parts = [_repeats(part, inner) for part in _parts(argument)]
        counts = [more for more, _ in parts] or [0]
        count += max(counts) if kind == "BRANCH" else sum(counts)
        count += repeated and argument[0] != argument[1] and argument[1] > 1
        nested = nested or any(deeper for _, deeper in parts)
    return count, nested


def _parts(argument: Any) -> Iterator[Any]:
    """The expressions within an operator's argument."""
    if isinstance(argument, sre_parse.SubPattern):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for one in argument:
            yield from _parts(one)
