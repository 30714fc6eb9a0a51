"""Signal handlers at the system's level. Python's `signal` sets them only in the main thread; this works in any."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator

_SIGACTION_BYTES = 1024  # a `struct sigaction` takes about 150
_SIG_DFL = None


@contextlib.contextmanager
def handlers_kept(numbers: Iterable[int]) -> Iterator[None]:
    """Restores the handlers of these signals after the block, whatever C code in it did."""
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
    """Reset these signals to the system's default handling."""
    system = ctypes.CDLL(None)
    system.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    for number in numbers:
        system.signal(number, _SIG_DFL)
