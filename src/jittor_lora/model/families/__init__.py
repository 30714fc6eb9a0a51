"""The families of base models: one file for each, and this table of them, by `model_type` in config.json."""

from jittor_lora.model.families import gpt2, llama, mistral, qwen2, qwen3
from jittor_lora.model.families.family import Family

FAMILIES: dict[str, Family] = {
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
}

__all__ = ["FAMILIES", "Family"]
