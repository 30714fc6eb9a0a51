"""What matrix products are computed in, and what of that a device can do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from jittor_lora.ops import backend
from jittor_lora.system.runtime import jt

# By `--precision`, what cuBLAS rounds the float32 numbers of a product to (Jittor's `use_tensorcore`): nothing, TF32
# with 10 bits of mantissa, bfloat16 with 7. It adds up in float32.
PRODUCTS = {"fp32": 0, "bf16": 2, "tf32": 1}
PRECISIONS = tuple(PRODUCTS)  # kernels know a precision by its number here
AMPERE = 80  # the first architecture that multiplies either


def bf16_works() -> bool:
    """Are products in bfloat16 faster than in float32 on the current device?"""
    return _ampere() or backend.speeds_up("bf16")


def training_precision(precision: str) -> str:
    """What products with weights that train are in, on the current device, where those with frozen ones are in this."""
    return precision if backend.trains_weights() else "fp32"


def tf32_works() -> bool:
    """Does the current device multiply in TF32?"""
    return _ampere() or backend.speeds_up("tf32")


def _ampere() -> bool:
    return bool(jt.flags.use_cuda) and max(jt.flags.cuda_archs, default=0) >= AMPERE


@contextmanager
def stock_products(precision: str) -> Iterator[None]:
    """Within the block, Jittor's own products on CUDA are in this precision; the CPU's are always in float32.

    Jittor looks when it runs a product, not when it is written down: ask for the results within the block.
    """
    if not jt.flags.use_cuda:
        yield
        return
    with jt.flag_scope(use_tensorcore=PRODUCTS[precision]):
        yield
