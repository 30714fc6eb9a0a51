"""Building a network from a checkpoint."""

from __future__ import annotations

import sys
from typing import Mapping

import numpy as np

from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.gpt2 import GPT2LMHeadModel
from jittor_lora.model.llama import LlamaForCausalLM
from jittor_lora.ops.backend import bf16_works

NETWORKS = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


def build_model(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: str = "fp32") -> CausalLM:
    """The frozen network with this configuration and these weights (canonical names, the checkpoint's orientation).

    Args:
        precision: of matrix products with the weights, "fp32" or "bf16". Without bf16 instructions in the processor,
            fp32 is used, with a message.
    """
    if precision == "bf16" and not bf16_works():
        print("This machine has no fast bf16 products: computing in fp32.", file=sys.stderr)
        precision = "fp32"
    return NETWORKS[config.network](config, tensors, precision)
