"""Status line during slow steps."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, TextIO


@contextmanager
def silence_explained(text: str, seconds: float = 6.0, stream: Optional[TextIO] = None,
                      wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Print `text` on standard error after `seconds`, unless the block ends or calls the yielded function before.

    Prints nothing if not `wanted`.
    """
    timer = threading.Timer(seconds, lambda: print(text, file=stream or sys.stderr, flush=True))
    timer.daemon = True
    if wanted:
        timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()
