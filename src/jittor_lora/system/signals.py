"""Signal handlers as the system has them. Python's `signal` sets them in the main thread alone; this works in any."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator

_SIGACTION_BYTES = 1024  # a `struct sigaction` takes some 150
_SIG_DFL = None


@contextlib.contextmanager
def handlers_kept(numbers: Iterable[int]) -> Iterator[None]:
    """After the block these signals are handled as before it, whatever C code in it did."""
    system, before = ctypes.CDLL(None), {}
    for number in numbers:
        before[number] = ctypes.create_string_buffer(_SIGACTION_BYTES)
        system.sigaction(number, None, before[number])
    try:
        yield
    finally:
        for number, action in before.items():
            system.sigaction(number, action, None)


def handle_by_default(numbers: Iterable[int]) -> None:
    """As the system handles them in a process that sets no handler."""
    system = ctypes.CDLL(None)
    system.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    for number in numbers:
        system.signal(number, _SIG_DFL)
