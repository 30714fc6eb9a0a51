"""The metadata of a model for a GGUF file, composed from its configuration: the inverse of `gguf_config`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Iterator

import numpy as np

from jittor_lora.formats.gguf_config import ROPE_FACTORS
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.rotary import frequencies

# Fields of ModelConfig to keys without the architecture's prefix
_SIZES = {"max_positions": "context_length", "hidden_size": "embedding_length", "layers": "block_count",
          "intermediate_size": "feed_forward_length", "heads": "attention.head_count"}
_GPT2 = {**_SIZES, "norm_eps": "attention.layer_norm_epsilon"}
_LLAMA = {**_SIZES, "kv_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
          "norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}
_ARCHITECTURES = {"mistral": "llama"}  # the others have our names


def as_llama_cpp_has_it(config: ModelConfig) -> ModelConfig:
    """The same network as a family that llama.cpp has an architecture for, by the same name."""
    return replace(config, family=_ARCHITECTURES.get(config.family, config.family))


def model_metadata(config: ModelConfig) -> dict[str, Any]:
    """
    Args:
        config: from `as_llama_cpp_has_it`.
    """
    keys = _GPT2 if config.network == "gpt2" else _LLAMA
    found = {f"{config.family}.{key}": getattr(config, field) for field, key in keys.items()}
    if config.network == "llama":
        more = {"attention.value_length": config.head_dim, "rope.dimension_count": config.head_dim,
                "vocab_size": config.vocab_size}
        scaling = config.rope_scaling
        if scaling and scaling.kind == "linear":
            more.update({"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)})
        found.update((f"{config.family}.{key}", value) for key, value in more.items())
    return found


def extra_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Tensors that Hugging Face's model does not have: what Llama 3's frequencies are divided by."""
    scaling = config.rope_scaling
    if not scaling or scaling.kind != "llama3":
        return {}
    plain = frequencies(config.head_dim, config.rope_theta)
    return {ROPE_FACTORS: plain / frequencies(config.head_dim, config.rope_theta, scaling)}


def computed_otherwise(config: ModelConfig) -> Iterator[str]:
    """Sentences on what llama.cpp's graph of this family does not compute as this model does."""
    if config.family == "gpt2":
        if config.activation != "gelu_tanh":
            yield ("activation_function: llama.cpp computes GPT-2 with GELU's tanh form (gelu_new), found "
                   f"{config.source.get('activation_function')}")
        if config.scores_by_layer or not config.scores_scaled:
            yield ("scale_attn_weights and scale_attn_by_inverse_layer_idx: llama.cpp divides attention's scores by "
                   "√head_dim alone, found " + str([config.scores_scaled, config.scores_by_layer]).lower())
    if config.family == "qwen3" and config.biased:
        yield "attention_bias: llama.cpp's Qwen3 has no bias of o_proj, found true"
