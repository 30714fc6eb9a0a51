"""Rotary positions in config.json: `rope_theta` with `rope_scaling`, or transformers 5's `rope_parameters`."""

from __future__ import annotations

from typing import Any

from jittor_lora.model.families.fields import MOST_POSITIONS, Fields
from jittor_lora.model.rotary import RopeScaling

_DEFAULT_THETA = 10000.0


def read_rope(fields: Fields, positions: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of `ModelConfig`.

    As in transformers `rope_scaling` takes precedence over `rope_parameters`, and a base in either over `rope_theta`.

    Args:
        positions: max_position_embeddings, which is the original length where a file does not name one.
    """
    key, rope = "", {}
    for name in ("rope_parameters", "rope_scaling"):
        found = fields.config.get(name)
        if found is not None and not isinstance(found, dict):
            fields.problem(name, "a dictionary or null", found)
        elif found:
            key, rope = name, found
    partial = rope.get("partial_rotary_factor", fields.config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        name = f"{key}.partial_rotary_factor" if "partial_rotary_factor" in rope else "partial_rotary_factor"
        fields.problem(name, "1 (heads that rotate in part are not supported)", partial)
    name, theta = "rope_theta", fields.config.get("rope_theta")
    if rope.get("rope_theta") is not None:
        name, theta = f"{key}.rope_theta", rope["rope_theta"]
    theta = _DEFAULT_THETA if theta is None else theta
    return {"rope_theta": fields.number_value(name, theta, _DEFAULT_THETA, 0, 1e12),
            "rope_scaling": _scaling(fields, key, rope, positions)}


def _scaling(fields: Fields, key: str, rope: dict, positions: int) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        fields.problem(key, "the same rotary positions for all layers", f"those of {', '.join(map(str, nested))}")
    if kind == "default" or nested:
        return None
    if kind not in ("linear", "llama3"):
        fields.problem(f"{key}.rope_type", "default, linear or llama3", kind)
        return None

    def number(name: str, default: float, low: float) -> float:
        return fields.number_value(f"{key}.{name}", rope.get(name), default, low, 1e6)

    factor = number("factor", 1.0, 0)
    if kind == "linear":
        return RopeScaling(kind, factor)
    low, high = number("low_freq_factor", 1.0, 0), number("high_freq_factor", 4.0, 0)
    if not low < high:
        fields.problem(f"{key}.high_freq_factor", f"a number above low_freq_factor ({low:g})", high)
    # transformers prefers a value outside the dictionary.
    inside, name = rope.get("original_max_position_embeddings"), "original_max_position_embeddings"
    original = fields.config.get(name, positions if inside is None else inside)
    if type(original) is not int or not 1 <= original <= MOST_POSITIONS:
        fields.problem(f"{key}.{name}", f"a whole number from 1 to {MOST_POSITIONS}", original)
        original = positions
    return RopeScaling(kind, factor, low, high, original)
