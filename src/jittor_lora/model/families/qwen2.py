"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's network with biases of queries, keys and values."""

from __future__ import annotations

from typing import Any

from jittor_lora.model.families import llama
from jittor_lora.model.families.fields import Fields
from jittor_lora.model.families.window import read_layer_windows, within_window

DEFAULTS = llama.Defaults(vocab_size=151936, intermediate_size=22016, max_positions=32768, kv_heads=32, bos=None,
                          eos=None)


def _read(fields: Fields) -> dict[str, Any]:
    sizes = llama.read_sizes(fields, DEFAULTS)
    window = read_layer_windows(fields, sizes["layers"])
    return {**sizes, **within_window(sizes["max_positions"], window), "biased": ("q_proj", "k_proj", "v_proj")}


FAMILY = llama.FAMILY._replace(title="Qwen2, Qwen2.5", read=_read, architecture="Qwen2ForCausalLM")
