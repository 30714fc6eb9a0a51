"""The one exception a user ever sees as a message, and the one by which a signal ends the program."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: a wrong file, field, key or setting.

    The message names the file, field or key, what was expected, what was found and what to do next. The
    command line prints it without a traceback and exits with code 2.
    """


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end, like Ctrl-C.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int):
        super().__init__(f"signal {signal}")
        self.signal = signal
