"""The operations of the networks.

`portable` defines each of them in stock Jittor, with its arguments, shapes and source; `cpu` has most of them again as
fused kernels, which run wherever there is no CUDA and the kernels compile.
"""

from __future__ import annotations

from typing import Sequence

from jittor_lora.ops import portable
from jittor_lora.ops.backend import has_kernel, portable_operations
from jittor_lora.ops.matrix import Matrix, TrainedMatrix, as_var, frozen
from jittor_lora.ops.plan import AttentionPlan
from jittor_lora.ops.portable import dropout_mask, gelu_erf, low_rank, relu, rotary_tables, silu
from jittor_lora.system.runtime import jt


def _kernels():
    from jittor_lora.ops.cpu import functions
    return functions


def layer_norm(x, weight, bias, eps: float):
    """See `portable.layer_norm`."""
    return (_kernels() if has_kernel("norms") else portable).layer_norm(x, weight, bias, eps)


def rms_norm(x, weight, eps: float):
    """See `portable.rms_norm`."""
    return (_kernels() if has_kernel("norms") else portable).rms_norm(x, weight, eps)


def gelu_tanh(x):
    """See `portable.gelu_tanh`."""
    return (_kernels() if has_kernel("activations") else portable).gelu_tanh(x)


def swiglu(gate, up):
    """See `portable.swiglu`."""
    return (_kernels() if has_kernel("activations") else portable).swiglu(gate, up)


def rotary(x, cos, sin):
    """See `portable.rotary`."""
    return (_kernels() if has_kernel("activations") else portable).rotary(x, cos, sin)


def linear(x, weight: Matrix, bias=None):
    """See `portable.linear`."""
    if has_kernel("linear") and not weight.trained:
        return _kernels().linear(x, weight, bias)
    return portable.linear(x, weight.var, bias)


def lora_linear(x, weight: Matrix, bias, lora_a, lora_b, scaling: float, dropout: float = 0.0,
                dropout_seed: int | None = None, dropout_row: int = 0):
    """See `portable.lora_linear`."""
    if has_kernel("linear") and not weight.trained:
        return _kernels().lora_linear(x, weight, bias, lora_a, lora_b, scaling, dropout, dropout_seed,
                                      dropout_row)
    return portable.lora_linear(x, weight.var, bias, lora_a, lora_b, scaling, dropout, dropout_seed, dropout_row)


def attention(q, k, v, plan: AttentionPlan):
    """See `portable.attention`."""
    return (_kernels() if has_kernel("attention") else portable).attention(q, k, v, plan)


def fused_attention(qkv, heads: int, plan: AttentionPlan, rows=None):
    """See `portable.fused_attention`."""
    return (_kernels() if has_kernel("attention") else portable).fused_attention(qkv, heads, plan, rows)


def token_cross_entropy(hidden, head: Matrix, labels, weights, smoothing: float = 0.0):
    """See `portable.token_cross_entropy`."""
    labels, weights = as_var(labels), as_var(weights)
    if has_kernel("cross_entropy") and not head.trained:
        return _kernels().token_cross_entropy(hidden, head, labels, weights, smoothing)
    return portable.token_cross_entropy(hidden, head.var, labels, weights, smoothing)


def add(x, y):
    """See `portable.add`."""
    return (_kernels() if has_kernel("arrays") else portable).add(x, y)


def shared(x, count: int):
    """See `portable.shared`."""
    return (_kernels() if has_kernel("arrays") else portable).shared(x, count)


def rows(x, index):
    """See `portable.rows`."""
    return (_kernels() if has_kernel("arrays") else portable).rows(x, index)


def loss_per(loss, weight: float):
    """See `portable.loss_per`."""
    return (_kernels() if has_kernel("arrays") else portable).loss_per(loss, weight)


def squared_norms(arrays: Sequence[jt.Var]):
    """See `portable.squared_norms`."""
    return (_kernels() if has_kernel("optimizer") else portable).squared_norms(arrays)


def adamw(parameter, gradient, first, second, betas: tuple[float, float], decay: float, rate: float, correction: float,
          epsilon: float, factor: float = 1.0):
    """See `portable.adamw`."""
    return (_kernels() if has_kernel("optimizer") else portable).adamw(parameter, gradient, first, second, betas, decay,
                                                                       rate, correction, epsilon, factor)


__all__ = [
    "AttentionPlan",
    "Matrix",
    "TrainedMatrix",
    "adamw",
    "add",
    "as_var",
    "attention",
    "dropout_mask",
    "frozen",
    "fused_attention",
    "gelu_erf",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "lora_linear",
    "loss_per",
    "low_rank",
    "portable_operations",
    "relu",
    "rms_norm",
    "rotary",
    "rotary_tables",
    "rows",
    "shared",
    "silu",
    "squared_norms",
    "swiglu",
    "token_cross_entropy",
]
