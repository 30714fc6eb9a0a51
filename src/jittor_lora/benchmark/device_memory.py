"""The memory in use on the GPU, asked of the driver: NVML, which needs no CUDA context of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def meter(environ: Mapping[str, str], library: str = "libnvidia-ml.so.1") -> Callable[[], float] | None:
    """A function that returns the MiB in use on the first visible GPU, by whichever process; None without a driver."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    first = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    device, memory = ctypes.c_void_p(), _Memory()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(int(first) if first.isdecimal() else 0,
                                                               ctypes.byref(device)):
        return None

    def used() -> float:
        return 0.0 if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) else memory.used / 2**20

    return used
