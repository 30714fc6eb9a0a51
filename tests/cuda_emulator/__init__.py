"""The CUDA backend on a machine without a GPU: its kernels as C++ (cuda_emulator.h), on arrays in ordinary memory.

    with emulated():
        ...  # `ops.…` runs on it

Threads of a block run in ascending order; `thread_order` sets another one. A result that depends on it is wrong.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import Iterator

from jittor_lora.ops import backend as choices

ASCENDING, DESCENDING, SHUFFLED = 0, 1, 5


@contextmanager
def emulated() -> Iterator[None]:
    """Within the block Jittor's device "cpu" has the CUDA kernels."""
    with _backends({"cpu": "cuda_emulator.backend"}):
        yield


@contextmanager
def _backends(found: dict[str, str]) -> Iterator[None]:
    before = dict(choices.BACKENDS)
    try:
        _use(found)
        yield
    finally:
        _use(before)


def _use(found: dict[str, str]) -> None:
    choices.BACKENDS.clear()
    choices.BACKENDS.update(found)
    choices._backend.cache_clear()
    choices._choices.clear()


@contextmanager
def thread_order(order: int) -> Iterator[None]:
    from cuda_emulator.library import library
    library().jl_emulator_order(ctypes.c_int(order))
    try:
        yield
    finally:
        library().jl_emulator_order(ctypes.c_int(ASCENDING))


def launches() -> int:
    """Kernels and products started so far."""
    from cuda_emulator.library import library
    return library().jl_launches()
