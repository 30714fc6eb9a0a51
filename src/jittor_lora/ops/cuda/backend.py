"""The backend for NVIDIA GPUs: the operations as fused kernels, compiled by nvcc at their first use."""

from __future__ import annotations

from jittor_lora.ops import fused
from jittor_lora.ops.backend import Kernels
from jittor_lora.ops.cuda import packing
from jittor_lora.ops.cuda.decoder import Decoder
from jittor_lora.ops.operator.kernel_op import Caller

RANKS_AT_A_TIME = 8  # of linear.cu: projections onto A are padded to a multiple

OPERATIONS = {
    "linear": fused.linear,
    "lora_linear": fused.lora_linear,
    "layer_norm": fused.layer_norm,
    "rms_norm": fused.rms_norm,
    "gelu_tanh": fused.gelu_tanh,
    "swiglu": fused.swiglu,
    "rotary": fused.rotary,
    "token_cross_entropy": fused.token_cross_entropy,
    "add": fused.add,
    "shared": fused.shared,
    "rows": fused.rows,
    "loss_per": fused.loss_per,
    "squared_norms": fused.squared_norms,
    "adamw": fused.adamw,
    "decoder": Decoder,
}


def kernels_of(call: Caller) -> Kernels:
    """The kernels of a library, as `fused` calls them."""
    return Kernels(call, packing.product, packing.storage, packing.head_forms, RANKS_AT_A_TIME)


def works() -> bool:
    return False


def precisions() -> tuple[str, ...]:
    return "fp32", "bf16"
