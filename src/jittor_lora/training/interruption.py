"""Signals that ask a run to end: the step in hand is finished first."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import Callable, Iterator

from jittor_lora.errors import Stopped
from jittor_lora.system.ranks import ALONE, Ranks

STOPPING = b"\nStopping after this step; a second signal stops at once, without saving.\n"


@contextmanager
def interruption_noticed(ranks: Ranks = ALONE) -> Iterator[Callable[[], int | None]]:
    """Within the block Ctrl-C, SIGTERM and a closed terminal (SIGHUP) are only noted; a second one interrupts at once.

    Yields a function that returns the number of the signal, None without one; all ranks call it together and get the
    same answer. Python handles signals only in the main thread: in another one nothing is noted.

    A Ctrl-C in a terminal also reaches a compiler that Jittor has started. Its operator then fails, which counts as
    the interruption.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ranks.first_given(None)
        return
    noted: list[int] = []

    def note(number, frame):
        if noted:
            raise Stopped(number)
        noted.append(number)
        if ranks.size == 1:
            _write(STOPPING)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup does
    numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))
    before = {number: signal.signal(number, note) for number in numbers}
    for number in before:  # Jittor treats an interrupted wait for the lock on its cache as a failure
        signal.siginterrupt(number, False)
    try:
        yield lambda: ranks.first_given(noted[0] if noted else None)
    except RuntimeError as error:
        if noted:
            raise Stopped(noted[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(text: bytes) -> None:
    """To standard error from a signal handler, which may run in the middle of a use of sys.stderr's buffer."""
    try:
        os.write(2, text)
    except OSError:  # the terminal is gone, and later messages must not end the run
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
