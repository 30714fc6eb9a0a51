"""The operations of the networks.

`portable` defines each of them in stock Jittor, with its arguments, shapes and source. A backend, such as `cpu`, has
most of them again as fused kernels; `backend` chooses. Nothing outside this folder names a backend.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from jittor_lora.ops import decoding
from jittor_lora.ops.backend import chosen, has_kernel, portable_operations
from jittor_lora.ops.matrix import Matrix, TrainedMatrix, as_var, frozen
from jittor_lora.ops.plan import AttentionPlan
from jittor_lora.ops.portable import dropout_mask, gelu_erf, low_rank, quick_gelu, relu, rotary_tables, silu, tanh
from jittor_lora.ops.precision import bf16_works, stock_products, tf32_works, training_precision
from jittor_lora.system.runtime import jt


def layer_norm(x, weight, bias, eps: float):
    """See `portable.layer_norm`."""
    return chosen("layer_norm")(x, weight, bias, eps)


def rms_norm(x, weight, eps: float):
    """See `portable.rms_norm`."""
    return chosen("rms_norm")(x, weight, eps)


def gelu_tanh(x):
    """See `portable.gelu_tanh`."""
    return chosen("gelu_tanh")(x)


def swiglu(gate, up):
    """See `portable.swiglu`."""
    return chosen("swiglu")(gate, up)


def rotary(x, cos, sin):
    """See `portable.rotary`."""
    return chosen("rotary")(x, cos, sin)


def linear(x, weight: Matrix, bias=None):
    """See `portable.linear`."""
    return chosen("linear")(x, weight, bias)


def lora_linear(x, weight: Matrix, bias, lora_a, lora_b, scaling: float, dropout: float = 0.0,
                dropout_seed: int | None = None, dropout_row: int = 0):
    """See `portable.lora_linear`."""
    return chosen("lora_linear")(x, weight, bias, lora_a, lora_b, scaling, dropout, dropout_seed, dropout_row)


def attention(q, k, v, plan: AttentionPlan, scale: float | None = None):
    """See `portable.attention`."""
    return chosen("attention")(q, k, v, plan, scale)


def fused_attention(qkv, heads: int, plan: AttentionPlan, rows=None, scale: float | None = None):
    """See `portable.fused_attention`."""
    return chosen("fused_attention")(qkv, heads, plan, rows, scale)


def token_cross_entropy(hidden, head: Matrix, labels, weights, smoothing: float = 0.0):
    """See `portable.token_cross_entropy`."""
    return chosen("token_cross_entropy")(hidden, head, as_var(labels), as_var(weights), smoothing)


def add(x, y):
    """See `portable.add`."""
    return chosen("add")(x, y)


def shared(x, count: int):
    """See `portable.shared`."""
    return chosen("shared")(x, count)


def rows(x, index):
    """See `portable.rows`."""
    return chosen("rows")(x, index)


def embedding(weight: Matrix, ids: np.ndarray):
    """See `portable.embedding`."""
    return chosen("embedding")(weight, ids)


def loss_per(loss, weight: float):
    """See `portable.loss_per`."""
    return chosen("loss_per")(loss, weight)


def squared_norms(arrays: Sequence[jt.Var]):
    """See `portable.squared_norms`."""
    return chosen("squared_norms")(arrays)


def adamw(parameters: Sequence[jt.Var], gradients: Sequence[jt.Var], firsts: Sequence[jt.Var],
          seconds: Sequence[jt.Var], betas: tuple[float, float], decays: Sequence[float], rates: Sequence[float],
          correction: float, epsilon: float, factor: float = 1.0):
    """See `portable.adamw`."""
    return chosen("adamw")(parameters, gradients, firsts, seconds, betas, decays, rates, correction, epsilon, factor)


def decoder(weights: decoding.NetworkWeights) -> decoding.Decoder:
    """Prepare a network for decoding in one call per step; only where `has_kernel("decoding")`."""
    return chosen("decoder")(weights)


__all__ = [
    "AttentionPlan",
    "Matrix",
    "TrainedMatrix",
    "adamw",
    "add",
    "as_var",
    "attention",
    "bf16_works",
    "decoder",
    "dropout_mask",
    "embedding",
    "frozen",
    "fused_attention",
    "gelu_erf",
    "gelu_tanh",
    "has_kernel",
    "layer_norm",
    "linear",
    "lora_linear",
    "loss_per",
    "low_rank",
    "portable_operations",
    "quick_gelu",
    "relu",
    "rms_norm",
    "rotary",
    "rotary_tables",
    "rows",
    "shared",
    "silu",
    "squared_norms",
    "stock_products",
    "swiglu",
    "tanh",
    "tf32_works",
    "token_cross_entropy",
    "training_precision",
]
