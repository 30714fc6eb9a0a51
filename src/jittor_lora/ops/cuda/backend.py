"""The backend for NVIDIA GPUs: the operations as fused kernels, compiled by nvcc at their first use."""

from __future__ import annotations

from jittor_lora.ops import fused
from jittor_lora.ops.backend import Kernels
from jittor_lora.ops.cuda import attention, packing
from jittor_lora.ops.cuda.decoder import Decoder
from jittor_lora.ops.cuda.library import capability, cuda_tools, library
from jittor_lora.ops.operator import kernel_op
from jittor_lora.ops.operator.kernel_op import Caller
from jittor_lora.ops.precision import PRECISIONS

FIRST_WITH_BF16 = 80  # compute capability
RANKS_AT_A_TIME = 8  # of linear.cu: projections onto A are padded to a multiple

OPERATIONS = {**fused.OPERATIONS, "attention": attention.attention, "fused_attention": attention.fused_attention,
              "decoder": Decoder}


def kernels_of(call: Caller) -> Kernels:
    """The kernels of a library, as `fused` calls them."""
    return Kernels(call, packing.product, packing.storage, packing.head_forms,
                   lambda plan, by_keys: plan.key_tiles if by_keys else plan.query_tiles, packing.table,
                   RANKS_AT_A_TIME, trains_weights=False)


KERNELS = kernels_of(Caller(library, on_device=True))


def works() -> bool:
    """Do the kernels compile, load and run here? Where not, a message says why."""
    return kernel_op.works(library)


def precisions() -> tuple[str, ...]:
    """bf16 and TF32 only where the device multiplies them: before compute capability 8.0, none does."""
    return PRECISIONS if capability(cuda_tools()) >= FIRST_WITH_BF16 else ("fp32",)
