"""The CPU's backend: the operations as fused C++ kernels, compiled for this machine at their first use."""

from __future__ import annotations

from jittor_lora.ops import fused
from jittor_lora.ops.backend import Kernels
from jittor_lora.ops.cpu import packing
from jittor_lora.ops.cpu.decoder import Decoder
from jittor_lora.ops.cpu.interface import CONSTANTS
from jittor_lora.ops.cpu.library import library
from jittor_lora.ops.operator import kernel_op
from jittor_lora.ops.operator.kernel_op import Caller
from jittor_lora.system import machine
from jittor_lora.system.runtime import uses_onednn

OPERATIONS = {**fused.OPERATIONS, "decoder": Decoder}

KERNELS = Kernels(Caller(library), packing.product, packing.storage, packing.head_forms,
                  lambda plan, by_keys: plan.groups if by_keys else plan.segments, lambda weight: None,
                  CONSTANTS["RANKS_AT_A_TIME"], trains_weights=True)


def works() -> bool:
    """Do the kernels compile and load here? Where not, a message says why."""
    return uses_onednn() and kernel_op.works(library)


def precisions() -> tuple[str, ...]:
    """bf16 only where the processor multiplies it; emulated, it would be slower than fp32."""
    return ("fp32", "bf16") if machine.multiplies_bf16(machine.cpu_flags()) else ("fp32",)
