"""The CPU's backend: the operations as fused C++ kernels, compiled for this machine at their first use."""

from __future__ import annotations

import sys

from jittor_lora.errors import UserError
from jittor_lora.ops.cpu import functions
from jittor_lora.ops.cpu.decoder import Decoder
from jittor_lora.ops.cpu.kernel_op import kernel_op
from jittor_lora.ops.cpu.library import library
from jittor_lora.system import machine
from jittor_lora.system.runtime import uses_onednn

OPERATIONS = {
    "linear": functions.linear,
    "lora_linear": functions.lora_linear,
    "attention": functions.attention,
    "fused_attention": functions.fused_attention,
    "layer_norm": functions.layer_norm,
    "rms_norm": functions.rms_norm,
    "gelu_tanh": functions.gelu_tanh,
    "swiglu": functions.swiglu,
    "rotary": functions.rotary,
    "token_cross_entropy": functions.token_cross_entropy,
    "add": functions.add,
    "shared": functions.shared,
    "rows": functions.rows,
    "loss_per": functions.loss_per,
    "squared_norms": functions.squared_norms,
    "adamw": functions.adamw,
    "decoder": Decoder,
}


def works() -> bool:
    """Do the kernels compile and load here? Where not, a message says why."""
    if not uses_onednn():
        return False
    try:
        library()
        kernel_op()
    except (UserError, OSError) as error:
        print(f"{error}\nContinuing without them, several times slower.", file=sys.stderr)
        return False
    return True


def precisions() -> tuple[str, ...]:
    """bf16 only where the processor multiplies it; emulated, it would be slower than fp32."""
    return ("fp32", "bf16") if machine.multiplies_bf16(machine.cpu_flags()) else ("fp32",)
