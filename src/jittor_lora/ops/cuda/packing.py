"""Weights in the form that the CUDA kernels read, one for forward, backward and decoding: float32, or bf16 by rows.

For bf16, blocks are decoded some rows at a time, and a matrix that is stored in bf16 is sent as it is in its file.
"""

from __future__ import annotations

import numpy as np

from jittor_lora.ops.blocks import FLOAT32, Blocks
from jittor_lora.ops.matrix import Matrix, on_device

# Rows of zeros fill up to a multiple: the gradient of a head runs along the vocabulary, and GPT-2's odd size would keep
# it from tensor cores.
BF16_ROWS = 64


def storage(weight: Matrix) -> int:
    """Always 0: kernels get no blocks."""
    return 0


def product(weight: Matrix, transposed: bool):
    """For x · Wᵀ as for dy · W: (out, in) float32, or bf16 as int16 with rows of zeros up to a multiple of
    BF16_ROWS."""
    return weight.stored_form(("cuda", "bf16"), _bf16) if weight.precision == "bf16" else weight.var


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
    rows, width = blocks.shape
    padding = -rows % BF16_ROWS
    if blocks.kind == "BF16" and not padding:
        return on_device(np.ascontiguousarray(blocks.data).view(np.int16))
    bits = np.zeros((rows + padding, width), np.int16)
    if blocks.kind == "BF16":
        bits[:rows] = np.ascontiguousarray(blocks.data).view(np.int16)
    else:
        row = 0
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
