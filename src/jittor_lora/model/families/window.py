"""Attention within a sliding window, which matters only for texts longer than the window."""

from __future__ import annotations

from typing import Any

from jittor_lora.model.families.fields import MOST_POSITIONS, Fields

_DEFAULT_WINDOW, _DEFAULT_FIRST_LAYER = 4096, 28
_LAYER_TYPES = ("full_attention", "sliding_attention")


def read_window(fields: Fields, name: str = "sliding_window") -> int | None:
    """The number of tokens that a row sees, itself among them; None for all."""
    if fields.config.get(name, _DEFAULT_WINDOW) is None:
        return None
    return fields.integer(name, _DEFAULT_WINDOW, MOST_POSITIONS)


def read_layer_windows(fields: Fields, layers: int) -> int | None:
    """The same for Qwen's models, in which a switch turns the window on, for the later layers or for those listed."""
    window = read_window(fields) if fields.flag("use_sliding_window", False) else None
    kinds = fields.config.get("layer_types")
    if kinds is None:
        first = fields.config.get("max_window_layers", _DEFAULT_FIRST_LAYER)
        return window if type(first) is not int or first < layers else None
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in _LAYER_TYPES for kind in kinds):
        fields.problem("layer_types", f"a list of {layers}, each {' or '.join(_LAYER_TYPES)}", kinds)
        return window
    if "sliding_attention" not in kinds:
        return None
    if window is None:
        fields.problem("layer_types", "full_attention alone, as use_sliding_window is not true", "sliding_attention")
    return window


def within_window(positions: int, window: int | None) -> dict[str, Any]:
    """`max_positions` and `notes` of `ModelConfig`: texts are limited to those for which the window changes nothing."""
    if window is None or window >= positions:
        return {"max_positions": positions}
    return {"max_positions": window, "notes": (
        f"attention within a sliding window is not implemented: texts are limited to {window} tokens, for which it "
        f"changes nothing (max_position_embeddings: {positions}).",)}
