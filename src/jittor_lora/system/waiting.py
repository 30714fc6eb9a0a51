"""A word about a long silence."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, TextIO

FIRST_TEXTS = ("Still at it: the first texts are being read. Without the CPU kernels, as on a GPU, Jittor also "
               "compiles operators then, once.")


@contextmanager
def silence_explained(text: str = FIRST_TEXTS, seconds: float = 6.0,
                      stream: Optional[TextIO] = None, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Print `text` on standard error if the block takes longer than `seconds` before it calls what it is given.

    Nothing is printed unless it is `wanted`.
    """
    timer = threading.Timer(seconds, lambda: print(text, file=stream or sys.stderr, flush=True))
    timer.daemon = True
    if wanted:
        timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()
