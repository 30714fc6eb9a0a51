"""The CUDA backend as `jittor_lora.ops.cuda.backend`, on the emulator's library."""

from __future__ import annotations

from cuda_emulator.library import library
from jittor_lora.ops.cuda.backend import OPERATIONS, kernels_of
from jittor_lora.ops.operator.kernel_op import Caller

KERNELS = kernels_of(Caller(library))

__all__ = ["KERNELS", "OPERATIONS"]


def works() -> bool:
    library()
    return True


def precisions() -> tuple[str, ...]:
    return "fp32", "bf16"
