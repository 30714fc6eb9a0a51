"""Mistral (Jiang et al. 2023): Llama's network, and in the first models a sliding window."""

from __future__ import annotations

from typing import Any

from jittor_lora.model.families import llama
from jittor_lora.model.families.fields import Fields
from jittor_lora.model.families.window import read_window, within_window

_DEFAULTS = llama.Defaults(intermediate_size=14336, max_positions=131072, kv_heads=8)


def _read(fields: Fields) -> dict[str, Any]:
    sizes = llama.read_sizes(fields, _DEFAULTS)
    return {**sizes, **within_window(sizes["max_positions"], read_window(fields))}


FAMILY = llama.FAMILY._replace(title="Mistral", read=_read, architecture="MistralForCausalLM")
