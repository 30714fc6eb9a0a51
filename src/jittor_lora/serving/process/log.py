"""The log: lines on standard error, written by a thread of their own."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from typing import Optional, TextIO

MOST_WAITING_LINES = 10_000


class Log:
    """A terminal that is stopped must not stop the server: lines beyond those that wait are left out, and counted."""

    def __init__(self, stream: Optional[TextIO] = None):
        self._stream = sys.stderr if stream is None else stream
        self._lines: queue.Queue[str] = queue.Queue(MOST_WAITING_LINES)
        self._left_out = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def say(self, line: str) -> None:
        """May be called from any thread."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._left_out += 1

    def flush(self, seconds: float = 1.0) -> None:
        """Wait until all lines are written, but not for longer than this."""
        end = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            left_out, self._left_out = self._left_out, 0
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                print(line + (f"\n({left_out:,} lines left out)" if left_out else ""), file=self._stream, flush=True)
            self._lines.task_done()
