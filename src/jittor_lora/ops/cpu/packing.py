"""Weights in the layouts that the kernels read, packed once per matrix and kept with it (`Matrix.form`)."""

from __future__ import annotations

from typing import Callable

import numpy as np

from jittor_lora.ops.blocks import FLOAT32, STORED, Blocks
from jittor_lora.ops.cpu.interface import ENUMERATIONS
from jittor_lora.ops.cpu.library import library
from jittor_lora.ops.matrix import Matrix
from jittor_lora.system.runtime import jt

_PACKED = "packed"
_CODES = dict(zip((FLOAT32, *STORED, _PACKED), range(len(ENUMERATIONS["Storage"]))))


def storage(weight: Matrix) -> int:
    """The number in kernels/interface.h of the format that training's kernels read."""
    if _is_decoded(weight):
        return _CODES[weight.storage]
    return _CODES[_PACKED if weight.precision == "bf16" and not weight.trained else FLOAT32]


def stored(weight: Matrix):
    """A weight in blocks in the panels of kernels/storage.h, the one form that training and decoding share: uint8
    bytes."""
    return weight.stored_form(("cpu", "stored"), _stored)


def product(weight: Matrix, transposed: bool):
    """What the product x · Wᵀ (`transposed`) or dy · W reads of a frozen weight: blocks, the array, or in bf16 a layout
    of oneDNN's."""
    if _is_decoded(weight):
        return stored(weight)
    if weight.precision != "bf16":
        return weight.var
    return weight.form(("cpu", "product", transposed), lambda array: _product(array, transposed))


def head_forms(weight: Matrix, with_gradient: bool) -> tuple:
    """What the loss reads of a frozen output head (V, D): blocks or the array; or in bf16 panels of rows for the logits
    and for their gradient. Those that are not read are None."""
    if _is_decoded(weight) or weight.precision != "bf16":
        return product(weight, True), None, None
    return None, head(weight, False), head(weight, True) if with_gradient else None


def head(weight: Matrix, down: bool):
    """A bf16 output head (V, D) in panels of rows, for logits or, `down`, for their gradient: uint8 bytes."""
    return weight.form(("cpu", "head", down), lambda array: _head(array, down))


def panels(weight: Matrix) -> tuple:
    """A weight in panels for decoding, uint8 bytes, and the number of their format: blocks, or FLOAT32's for numbers in
    the matrix's precision."""
    if _is_decoded(weight):
        return stored(weight), storage(weight)
    return weight.form(("cpu", "panels"), lambda array: _panels(array, weight.precision == "bf16")), _CODES[FLOAT32]


def screen(weight: Matrix):
    """An output head in 8 bits with bounds on the rounding errors, which finds the largest logit: uint8 bytes.
    None where that is not faster than computing all logits: of blocks, which take 4 to 16 bits themselves, and on
    processors that do not multiply bytes."""
    if _is_decoded(weight):
        return None
    return weight.form(("cpu", "screen"), lambda array: _screen(array, weight.precision == "bf16"))


def _is_decoded(weight: Matrix) -> bool:
    """Is it kept in blocks and converted wherever it is used? In bf16, BF16 needs no conversion: backends pack it."""
    return weight.storage != FLOAT32 and (weight.storage, weight.precision) != ("BF16", "bf16")


def _stored(blocks: Blocks):
    kernels, code, data = library(), _CODES[blocks.kind], np.ascontiguousarray(blocks.data)
    return _filled(kernels.jl_stored_size(code, *blocks.shape),
                   lambda to: kernels.jl_store(code, data.ctypes.data, *blocks.shape, to))


def _product(array: np.ndarray, transposed: bool):
    out, width = array.shape
    k, n = (width, out) if transposed else (out, width)
    kernels = library()
    return _filled(kernels.jl_packed_size(k, n),
                   lambda to: kernels.jl_pack(array.ctypes.data, to, k, n, int(transposed)))


def _head(array: np.ndarray, down: bool):
    kernels, shape = library(), array.shape
    return _filled(kernels.jl_packed_head_size(*shape, int(down)),
                   lambda to: kernels.jl_pack_head(array.ctypes.data, to, *shape, int(down)))


def _panels(array: np.ndarray, bf16: bool):
    kernels, shape = library(), array.shape
    return _filled(kernels.jl_decode_packed_size(*shape, int(bf16)),
                   lambda to: kernels.jl_decode_pack(array.ctypes.data, *shape, int(bf16), to))


def _screen(array: np.ndarray, bf16: bool):
    kernels, shape = library(), array.shape
    size = kernels.jl_decode_screen_size(*shape)
    if not size:
        return None
    return _filled(size, lambda to: kernels.jl_decode_pack_screen(array.ctypes.data, *shape, int(bf16), to))


def _filled(size: int, write: Callable[[int], None]) -> jt.Var:
    """`size` bytes, uint8, that `write` fills at their address."""
    packed = jt.empty((size,), "uint8")
    packed.sync()
    write(packed.raw_ptr)
    return packed
