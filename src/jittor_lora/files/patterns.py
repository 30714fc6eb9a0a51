"""Refuses regular expressions from untrusted files whose matching could take forever.

Python's matcher backtracks, which takes years for some expressions.
"""

from __future__ import annotations

import re
from math import comb, prod
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

try:
    from re import _parser as sre_parse
except ImportError:  # before Python 3.11
    import sre_parse

LONGEST = 1 << 14  # characters
MOST_REPEATS = 4  # "*", "+" or "{m,n}" in sequence
MOST_CHOICES = 10_000  # ways through its "|" and "?"
MOST_STEPS = 300_000_000  # a few seconds
_LITERAL = re.compile(r"[\w.-]*", re.ASCII)


class _Effort(NamedTuple):
    """The cost of matching an expression.

    Attributes:
        repeats: repetitions in sequence.
        choices: paths through alternatives and options.
        nested: whether a choice or repetition is within a repetition.
    """

    repeats: int = 0
    choices: int = 1
    nested: bool = False


def wrong_pattern(pattern: Any) -> str | None:
    """Why this is refused as a regular expression on module names; None if it is accepted.

    A repetition or choice within a repetition is refused, and more than a few of them.
    """
    if not isinstance(pattern, str) or len(pattern) > LONGEST:
        return "expected a regular expression"
    if _LITERAL.fullmatch(pattern):
        return None
    try:
        re.compile(pattern)
        effort = _effort(sre_parse.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression ({error})"
    if effort.nested:
        return "expected a regular expression without choices or repetitions within repetitions"
    if effort.repeats > MOST_REPEATS:
        return f"expected a regular expression of at most {MOST_REPEATS} repetitions"
    if effort.choices > MOST_CHOICES:
        return f"expected a regular expression of at most {MOST_CHOICES:,} ways through its choices"
    return None


def wrong_amount(patterns: Iterable[str], names: Sequence[str], at_parts: bool) -> str | None:
    """Why these patterns, each accepted, may not be matched against all these names; None if they may.

    A pattern of k repetitions takes at most C(n + k, k) steps on a text of n characters, per path through its choices.

    Args:
        at_parts: whether each pattern is tried at every part of a name.
    """
    longest = max(map(len, names), default=0)
    starts = sum(name.count(".") + 1 for name in names) if at_parts else len(names)
    steps = 0
    for pattern in patterns:
        effort = _Effort() if _LITERAL.fullmatch(pattern) else _effort(sre_parse.parse(pattern))
        steps += starts * effort.choices * comb(longest + effort.repeats, effort.repeats)
    if steps <= MOST_STEPS:
        return None
    return f"expected patterns that take at most {millions(MOST_STEPS)} steps to match, found {millions(steps)}"


def millions(count: int) -> str:
    """A large number for a message, rounded up so that it does not fall below a limit that it exceeds."""
    return f"{-(-count // 10**6):,} million" if count < 10**15 else "more than 10^15"


def _effort(tree: Any, within: bool = False) -> _Effort:
    """
    Args:
        tree: operators with their arguments, as `re` parses an expression.
        within: whether it is within a repetition.
    """
    repeats, choices, nested = 0, 1, False
    for operator, argument in tree:
        kind = str(operator)
        repeated = kind.endswith("_REPEAT")
        varies = repeated and argument[0] != argument[1]
        parts = [_effort(part, within or repeated and argument[1] > 1) for part in _parts(argument)]
        counts, ways = [part.repeats for part in parts] or [0], [part.choices for part in parts] or [1]
        if kind in ("BRANCH", "GROUPREF_EXISTS"):
            repeats, choices = repeats + max(counts), choices * (sum(ways) + (kind != "BRANCH"))
        else:
            repeats, choices = repeats + sum(counts), choices * prod(ways)
        if varies and argument[1] > 1:
            repeats += 1
        elif varies:
            choices *= 2
        choices = min(choices, MOST_CHOICES + 1)
        nested = nested or within and (kind == "BRANCH" or varies) or any(part.nested for part in parts)
    return _Effort(repeats, choices, nested)


def _parts(argument: Any) -> Iterator[Any]:
    """The expressions within an operator's argument."""
    if isinstance(argument, sre_parse.SubPattern):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _parts(item)
