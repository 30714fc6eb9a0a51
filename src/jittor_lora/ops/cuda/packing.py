"""Weights in the forms that the CUDA kernels read, one for forward and backward: bf16 by rows, or float32.

Blocks are decoded here, once, some rows at a time; a matrix that is stored in bf16 is uploaded as it is in its file.
"""

from __future__ import annotations

import numpy as np

from jittor_lora.ops.blocks import FLOAT32, Blocks
from jittor_lora.ops.matrix import Matrix, on_device


def storage(weight: Matrix) -> int:
    """Always 0: kernels get no blocks."""
    return 0


def product(weight: Matrix, transposed: bool):
    """(out, in) for x · Wᵀ as for dy · W: float32, or bf16 as int16."""
    if weight.precision == "bf16":
        return weight.stored_form(("cuda", "bf16"), _bf16)
    if weight.storage == FLOAT32:
        return weight.var
    return weight.stored_form(("cuda", "fp32"), lambda blocks: on_device(blocks.decoded()))


def head_forms(weight: Matrix, with_gradient: bool) -> tuple:
    return product(weight, True), None, None


def table(weight: Matrix):
    """An embedding as exact as its file: in bf16, for a tied head the array that it has anyway, or in float32.

    None for formats that would grow here: of them the host decodes the rows of a stream. Of all, these would be 6 MB
    for 2,048 rows of GPT-2, gathered and sent in each pass while the GPU waits.
    """
    if weight.storage == ("BF16" if weight.precision == "bf16" else FLOAT32):
        return product(weight, True)
    if weight.storage == FLOAT32:
        return weight.stored_form(("cuda", "table"), lambda blocks: on_device(blocks.decoded()))
    return None


def _bf16(blocks: Blocks):
    if blocks.kind == "BF16":
        return on_device(np.ascontiguousarray(blocks.data).view(np.int16))
    bits, row = np.empty(blocks.shape, np.int16), 0
    for part in blocks.parts():
        bits[row : row + len(part)] = _rounded(part)
        row += len(part)
    return on_device(bits)


def _rounded(array: np.ndarray) -> np.ndarray:
    """Float32 to bf16, to nearest, ties to even; NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    rounded[np.isnan(array)] = 0x7FC0
    return rounded.view(np.int16)
