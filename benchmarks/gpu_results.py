"""What benchmarks/gpu.sh finds, one JSON object per line, written as it comes: a run that is cut off keeps it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Results:
    """
    Args:
        path: lines are added at its end.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, part: str, **values: Any) -> None:
        """Add a line; `part` says what was done."""
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"part": part, "time": time.time(), **values}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines; a last one that was cut off is left out."""
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n"):
                yield json.loads(line)
