"""The backend for NVIDIA GPUs: the operations as fused kernels, compiled by nvcc at their first use."""

from __future__ import annotations

from jittor_lora.ops import fused
from jittor_lora.ops.backend import Kernels
from jittor_lora.ops.cuda import attention, packing
from jittor_lora.ops.operator.kernel_op import Caller

OPERATIONS = {
    "layer_norm": fused.layer_norm,
    "rms_norm": fused.rms_norm,
    "attention": attention.attention,
    "fused_attention": attention.fused_attention,
}


def kernels_of(call: Caller) -> Kernels:
    """The kernels of a library, as `fused` calls them."""
    return Kernels(call, packing.product, packing.storage, packing.head_forms,
                   lambda plan, by_keys: plan.key_tiles if by_keys else plan.query_tiles, 1)


def works() -> bool:
    return False


def precisions() -> tuple[str, ...]:
    return "fp32", "bf16"
