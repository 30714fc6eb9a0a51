"""The operations of the networks; `portable` defines each of them."""

from jittor_lora.ops.portable import (
    attention,
    attention_plan,
    dropout_mask,
    embedding,
    gelu_erf,
    gelu_tanh,
    layer_norm,
    linear,
    lora_linear,
    relu,
    rms_norm,
    rotary,
    rotary_tables,
    silu,
    swiglu,
    token_cross_entropy,
)

__all__ = [
    "attention",
    "attention_plan",
    "dropout_mask",
    "embedding",
    "gelu_erf",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "lora_linear",
    "relu",
    "rms_norm",
    "rotary",
    "rotary_tables",
    "silu",
    "swiglu",
    "token_cross_entropy",
]
