"""From a checkpoint to a network."""

from __future__ import annotations

import sys
from typing import Mapping

import numpy as np

from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.gpt2 import GPT2LMHeadModel
from jittor_lora.model.llama import LlamaForCausalLM
from jittor_lora.ops.backend import bf16_works

FAMILIES = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


def build_model(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: str = "fp32") -> CausalLM:
    """The frozen network of this configuration with these weights (canonical names, the checkpoint's orientation).

    Args:
        precision: of products with the weights, "fp32" or "bf16". Where the processor does not multiply bf16 numbers,
            fp32, with a message.
    """
    if precision == "bf16" and not bf16_works():
        print("This machine has no fast bf16 products: computing in fp32.", file=sys.stderr)
        precision = "fp32"
    return FAMILIES[config.family](config, tensors, precision)
