"""From a checkpoint to a network."""

from __future__ import annotations

from typing import Mapping

import numpy as np

from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.gpt2 import GPT2LMHeadModel
from jittor_lora.model.llama import LlamaForCausalLM

FAMILIES = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


def build_model(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> CausalLM:
    """The frozen network of this configuration with these weights (canonical names, the checkpoint's orientation)."""
    return FAMILIES[config.family](config, tensors)
