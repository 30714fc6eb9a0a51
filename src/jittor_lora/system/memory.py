"""Memory of this process, and what it may still take."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

from jittor_lora.system import machine

_LIMITS = (  # of control groups, version 2 and 1: limit, usage, statistics, the page cache in them
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"))


def available(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be taken without swapping: the kernel's estimate, further limited by a container's."""
    free = _field("MemAvailable", meminfo)
    free = machine.total_memory() if free is None else 1024 * free
    for names in _LIMITS:
        limit, used = (_number(cgroup / name) for name in names[:2])
        if limit is not None and used is not None:
            cached = _field(names[3], cgroup / names[2]) or 0  # given up when memory is needed
            free = min(free, limit - used + cached)
    return max(free, 0)


def resident(status: Path = Path("/proc/self/status")) -> int:
    """Bytes of this process in memory; 0 if unknown."""
    return 1024 * (_field("VmRSS", status) or 0)


def peak(status: Path = Path("/proc/self/status")) -> int:
    """The most that `resident` has been since the start or `reset_peak`."""
    return 1024 * (_field("VmHWM", status) or 0)


def reset_peak() -> None:
    """Start `peak` anew, where the system lets a process do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Return freed memory to the system, so that `resident` does not count it; without glibc, nothing happens."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _field(name: str, path: Path) -> int | None:
    try:
        found = re.search(rf"^{name}:?\s+(\d+)", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no file or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
