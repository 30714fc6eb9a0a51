"""Weights in the forms that the CUDA kernels read: float32, or bf16 by rows, one copy for forward and backward."""

from __future__ import annotations

import numpy as np

from jittor_lora.ops.matrix import Matrix
from jittor_lora.system.runtime import jt

HEAD_ROWS = 64  # the gradient's product runs along the vocabulary: GPT-2's odd size would keep it from tensor cores


def storage(weight: Matrix) -> int:
    """Always 0: blocks are decoded when they are packed."""
    return 0


def product(weight: Matrix, transposed: bool):
    """(out, in) for x · Wᵀ as for dy · W: float32, or bf16 as int16."""
    if weight.precision != "bf16":
        return weight.var
    return weight.form(("cuda", "bf16"), _bf16)


def head_forms(weight: Matrix, with_gradient: bool) -> tuple:
    """The array of an output head (V, D); in bf16 with rows of zeros up to a multiple of `HEAD_ROWS`."""
    if weight.precision != "bf16" or weight.shape[0] % HEAD_ROWS == 0:
        return product(weight, True), None, None
    return weight.form(("cuda", "head"), _head), None, None


def _head(array: np.ndarray):
    return _bf16(np.pad(array, ((0, -len(array) % HEAD_ROWS), (0, 0))))


def _bf16(array: np.ndarray):
    """Rounded to nearest, ties to even: int16 with the bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    rounded[np.isnan(array)] = 0x7FC0
    return jt.array(rounded.view(np.int16))
