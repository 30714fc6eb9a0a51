"""Which implementation an operation runs on: the fused CPU kernels where they are, else stock Jittor."""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from typing import Iterator

from jittor_lora.errors import UserError
from jittor_lora.system.runtime import jt, uses_onednn

OPERATIONS = ("linear", "attention", "norms", "activations", "cross_entropy", "arrays", "optimizer", "decoding")

_portable: set[str] = set()


def has_kernel(operation: str) -> bool:
    """Does this operation, one of `OPERATIONS`, run on a fused kernel now?"""
    return operation not in _portable and not jt.flags.use_cuda and kernels_work()


@functools.lru_cache(maxsize=None)
def kernels_work() -> bool:
    """Are there kernels for this machine? Compiles them at the first call."""
    if not uses_onednn():
        return False
    from jittor_lora.ops.cpu.custom_op import operator
    from jittor_lora.ops.cpu.library import library
    try:
        library()
        operator()
    except (UserError, OSError) as error:
        print(f"{error}\nGoing on without them, several times slower.", file=sys.stderr)
        return False
    return True


@contextmanager
def portable_operations(*operations: str) -> Iterator[None]:
    """Within the block these operations (all if none is named) run in stock Jittor."""
    unknown = set(operations) - set(OPERATIONS)
    if unknown:
        raise ValueError(f"unknown operations: {', '.join(sorted(unknown))}; there are {', '.join(OPERATIONS)}")
    added = set(operations or OPERATIONS) - _portable
    _portable.update(added)
    try:
        yield
    finally:
        _portable.difference_update(added)


def bf16_works() -> bool:
    """Are products in bfloat16 faster than in float32 here? Only the kernels on a processor that multiplies it."""
    from jittor_lora.ops.cpu.packing import has_bf16
    return not jt.flags.use_cuda and has_bf16() and kernels_work()
