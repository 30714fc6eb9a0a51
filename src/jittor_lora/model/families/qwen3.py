"""Qwen3 (Yang et al. 2025): Llama's network with an RMS norm over each head of queries and keys."""

from __future__ import annotations

from typing import Any

from jittor_lora.model.families import llama, qwen2
from jittor_lora.model.families.fields import Fields
from jittor_lora.model.families.window import read_layer_windows, within_window

_DEFAULTS = qwen2.DEFAULTS._replace(head_dim=128)


def _read(fields: Fields) -> dict[str, Any]:
    sizes = llama.read_sizes(fields, _DEFAULTS)
    window = read_layer_windows(fields, sizes["layers"])
    return {**sizes, **within_window(sizes["max_positions"], window), "qk_norm": True,
            "biased": llama.ATTENTION if fields.flag("attention_bias", False) else ()}


FAMILY = llama.FAMILY._replace(title="Qwen3", read=_read, architecture="Qwen3ForCausalLM")
