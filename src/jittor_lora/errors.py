"""The exception that a user sees as a message, and the one by which a signal ends the program."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LONGEST_MESSAGE = 20_000  # characters
_PLAIN = "\n\t"


class UserError(Exception):
    """Something the user can fix: a wrong file, field, key or setting.

    The message names the file, field or key, what was expected, what was found and what to do next. The command line
    prints it without a traceback and exits with code 2. Since messages quote files, characters that a terminal could
    interpret are escaped, and very long messages are cut.
    """

    def __init__(self, message: str):
        super().__init__(_printable(message))


def not_installed(what: str) -> UserError:
    """For a part of the package that the plain wheel leaves out."""
    return UserError(f"{what}: not installed; it is part of jittor-lora-extras. In a checkout of jittor-lora: "
                     "`pip install ./extras`.")


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end, like Ctrl-C.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int):
        super().__init__(f"signal {signal}")
        self.signal = signal


def some_of_each(*kinds: Sequence[str], most: int = 20) -> list[str]:
    """The first items of each list, about `most` in total, and the number of those left out of each."""
    kinds = [kind for kind in kinds if kind]
    shown = [min(len(kind), max(most // len(kinds), 1)) for kind in kinds]
    for i, kind in enumerate(kinds):
        shown[i] = min(len(kind), shown[i] + max(most - sum(shown), 0))
    lines = []
    for kind, count in zip(kinds, shown):
        lines += [*kind[:count], *([f"… and {len(kind) - count} more"] if count < len(kind) else [])]
    return lines


def _printable(text: str) -> str:
    if len(text) > LONGEST_MESSAGE:
        text = text[:LONGEST_MESSAGE] + " … (cut)"
    return re.sub(r"[^ -~]", _shown, text)


def _shown(match: re.Match) -> str:
    character = match.group()
    if character in _PLAIN or character.isprintable() or unicodedata.category(character) == "Zs":  # a kind of space
        return character
    # A control character, a change of writing direction, a lone surrogate or an unassigned code point.
    return character.encode("unicode_escape").decode("ascii")
