"""The one exception a user ever sees as a message, and the one by which a signal ends the program."""

from __future__ import annotations

import re
import unicodedata

LONGEST_MESSAGE = 20_000  # characters
_PLAIN = "\n\t"


class UserError(Exception):
    """Something the user can mend: a wrong file, field, key or setting.

    The message names the file, field or key, what was expected, what was found and what to do next. The
    command line prints it without a traceback and exits with code 2. As it quotes what is in files, what a terminal
    could take for a command is spelled out, and very long ones are cut.
    """

    def __init__(self, message: str):
        super().__init__(_printable(message))


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end, like Ctrl-C.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int):
        super().__init__(f"signal {signal}")
        self.signal = signal


def _printable(text: str) -> str:
    if len(text) > LONGEST_MESSAGE:
        text = text[:LONGEST_MESSAGE] + " … (cut)"
    return re.sub(r"[^ -~]", _shown, text)


def _shown(match: re.Match) -> str:
    character = match.group()
    if character in _PLAIN or character.isprintable() or unicodedata.category(character) == "Zs":  # a kind of space
        return character
    # It commands a terminal, turns the direction of writing, is half of another or none at all.
    return character.encode("unicode_escape").decode("ascii")
