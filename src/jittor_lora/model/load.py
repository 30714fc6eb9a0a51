"""Building a network from a checkpoint."""

from __future__ import annotations

import sys
from typing import Iterator, Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.gpt2 import GPT2LMHeadModel
from jittor_lora.model.llama import LlamaForCausalLM
from jittor_lora.ops import bf16_works, tf32_works

BASE_PRECISIONS = ("auto", "fp32")
NETWORKS = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


def build_model(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: str = "fp32",
                base_precision: str = "auto") -> CausalLM:
    """The frozen network with this configuration and these weights (canonical names, the checkpoint's orientation).

    Args:
        precision: of matrix products with the weights, one of `ops.precision.PRECISIONS`. Where products in bf16 are
            not faster, fp32 is used, with a message.
        base_precision: what weights are held in: "auto" for the format of their file, "fp32" for float32. The numbers
            computed are the same.

    Raises:
        UserError: tf32 without a GPU that has it.
    """
    if precision == "tf32" and not tf32_works():
        raise UserError("precision: expected bf16 or fp32 here, found tf32, which only NVIDIA's GPUs from the RTX 30 "
                        "series and the A100 on have, with CUDA.")
    if precision == "bf16" and not bf16_works():
        print("This machine has no fast bf16 products: computing in fp32.", file=sys.stderr)
        precision = "fp32"
    if base_precision == "fp32":
        tensors = _Decoded(tensors)
    return NETWORKS[config.network](config, tensors, precision)


class _Decoded(Mapping[str, np.ndarray]):
    """Tensors that do not offer their format in the file."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
