"""The end of a command by a signal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Optional

from jittor_lora.errors import Stopped


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a command ended by a signal, by the shell's rule: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)


def resumable(work: Callable[[], Optional[int]]) -> int:
    """Run `work`, which resumes where it stopped when the command is repeated. Returns the exit code: that of `work`, 0
    if it returns None."""
    try:
        return work() or 0
    except KeyboardInterrupt as stop:
        print("\nInterrupted.\nTo continue, run the same command again.", file=sys.stderr)
        return exit_code(stop)
