"""Time and memory of both sides, with what explains them."""

from __future__ import annotations

from typing import Any, Mapping

from jittor_lora.alignment.result import Alignment
from jittor_lora.alignment.words import LANGUAGES, MISSING, say


def cost_rows(alignment: Alignment) -> list[tuple[Mapping[str, str], str, str]]:
    """(label by language, first side, second side): seconds, memory, speed, framework, then all that they state."""
    facts, rows = alignment.facts, []
    labels = [sum(step.labels for step in steps) for steps in alignment.steps]
    rows += [(_named("seconds"), *(f"{one.training_seconds:,.1f}" for one in facts)),
             (_named("labels per second"), *(f"{count / one.training_seconds:,.0f}" if one.training_seconds else MISSING
                                             for count, one in zip(labels, facts))),
             (_named("peak"), *(f"{one.peak_bytes / 2**20:,.0f} MiB" for one in facts)),
             (_named("steps"), *(f"{len(steps):,}" for steps in alignment.steps)),
             (_named("framework"), *(one.framework for one in facts))]
    for of in ("settings", "versions", "machine"):
        first, second = (getattr(one, of) for one in facts)
        rows += [(dict.fromkeys(LANGUAGES, name), _shown(first.get(name)), _shown(second.get(name)))
                 for name in dict.fromkeys((*first, *second))]
    return rows


def same_settings(alignment: Alignment, language: str) -> str:
    """A sentence on the settings that explain time: the same on both sides, or not."""
    first, second = (one.settings for one in alignment.facts)
    shared = first.keys() & second.keys()
    different = [name for name in shared if first[name] != second[name]]
    if different or not shared:
        return say(language, "other settings")
    listed = ", ".join(f"{name} {_shown(first[name])}" for name in first if name in shared)
    return say(language, "same settings", settings=listed)


def _named(key: str) -> Mapping[str, str]:
    return {language: say(language, key) for language in LANGUAGES}


def _shown(value: Any) -> str:
    return MISSING if value is None else str(value)
