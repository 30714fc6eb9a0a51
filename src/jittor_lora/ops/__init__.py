"""The operations of the networks.

`portable` defines each of them in stock Jittor, with its arguments, shapes and source; `cpu` has most of them again as
fused kernels, which run wherever there is no CUDA and the kernels compile.
"""

from __future__ import annotations

from jittor_lora.ops import portable
from jittor_lora.ops.backend import has_kernel, portable_operations
from jittor_lora.ops.matrix import Matrix, TrainedMatrix, frozen
from jittor_lora.ops.plan import AttentionPlan
from jittor_lora.ops.portable import dropout_mask, gelu_erf, low_rank, relu, rotary_tables, silu
from jittor_lora.runtime import jt


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
    labels, weights = jt.array(labels), jt.array(weights)
    if has_kernel("cross_entropy") and not head.trained:
        return _kernels().token_cross_entropy(hidden, head, labels, weights, smoothing)
    return portable.token_cross_entropy(hidden, head.var, labels, weights, smoothing)


__all__ = [
    "AttentionPlan",
    "Matrix",
    "TrainedMatrix",
    "attention",
    "dropout_mask",
    "frozen",
    "fused_attention",
    "gelu_erf",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "lora_linear",
    "low_rank",
    "portable_operations",
    "relu",
    "rms_norm",
    "rotary",
    "rotary_tables",
    "silu",
    "swiglu",
    "token_cross_entropy",
]
