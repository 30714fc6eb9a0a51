"""Weights in bfloat16, laid out once for oneDNN's products."""

from __future__ import annotations

import ctypes

import numpy as np

from jittor_lora import machine
from jittor_lora.ops.cpu.library import library
from jittor_lora.runtime import jt


def has_bf16() -> bool:
    """Does the processor multiply bfloat16 numbers?"""
    return machine.multiplies_bf16(machine.cpu_flags())


def pack(weight: np.ndarray, transposed: bool):
    """`weight` (out, in), for x · Wᵀ (`transposed`) or dy · W: uint8 bytes."""
    out, width = weight.shape
    k, n = (width, out) if transposed else (out, width)
    kernels = _library()
    return _packed(kernels.jl_packed_size(k, n), lambda to: kernels.jl_pack(_at(weight), to, k, n, int(transposed)))


def pack_head(head: np.ndarray, down: bool):
    """`head` (V, D) in panels, for logits or, `down`, for their gradient: uint8 bytes."""
    kernels, shape = _library(), head.shape
    return _packed(kernels.jl_packed_head_size(*shape, int(down)),
                   lambda to: kernels.jl_pack_head(_at(head), to, *shape, int(down)))


def _packed(size: int, write) -> jt.Var:
    packed = jt.empty((size,), "uint8")
    packed.sync()
    write(ctypes.c_void_p(packed.raw_ptr))
    return packed


def _library() -> ctypes.CDLL:
    found = library()
    for sized in (found.jl_packed_size, found.jl_packed_head_size):
        sized.restype = ctypes.c_int64
    return found


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)
