"""Weights in bfloat16, laid out once for oneDNN's products."""

from __future__ import annotations

import numpy as np

from jittor_lora.ops.cpu.library import library
from jittor_lora.system import machine
from jittor_lora.system.runtime import jt


def has_bf16() -> bool:
    """Does the processor multiply bfloat16 numbers?"""
    return machine.multiplies_bf16(machine.cpu_flags())


def pack(weight: np.ndarray, transposed: bool):
    """`weight` (out, in), for x · Wᵀ (`transposed`) or dy · W: uint8 bytes."""
    out, width = weight.shape
    k, n = (width, out) if transposed else (out, width)
    kernels = library()
    return _packed(kernels.jl_packed_size(k, n),
                   lambda to: kernels.jl_pack(weight.ctypes.data, to, k, n, int(transposed)))


def pack_head(head: np.ndarray, down: bool):
    """`head` (V, D) in panels, for logits or, `down`, for their gradient: uint8 bytes."""
    kernels, shape = library(), head.shape
    return _packed(kernels.jl_packed_head_size(*shape, int(down)),
                   lambda to: kernels.jl_pack_head(head.ctypes.data, to, *shape, int(down)))


def _packed(size: int, write) -> jt.Var:
    packed = jt.empty((size,), "uint8")
    packed.sync()
    write(packed.raw_ptr)
    return packed
