"""Time and memory of both sides, with what explains them."""

from __future__ import annotations

from typing import Any, Mapping

from jittor_lora.alignment.result import Alignment
from jittor_lora.alignment.words import LANGUAGES, MISSING, WORDS, say


def cost_rows(alignment: Alignment) -> list[tuple[Mapping[str, str], str, str]]:
    """(label by language, first side, second side): seconds, memory, speed, framework, then all that they state."""
    facts, rows = alignment.facts, []
    labels = [sum(step.labels for step in steps) for steps in alignment.steps]
    rows += [(_named("seconds"), *(f"{one.training_seconds:,.1f}" for one in facts)),
             (_named("labels per second"), *(_rate(count, one.training_seconds) for count, one in zip(labels, facts))),
             (_named("peak"), *(f"{one.peak_bytes / 2**20:,.0f} MiB" for one in facts)),
             (_named("steps"), *(f"{len(steps):,}" for steps in alignment.steps)),
             (_named("framework"), *(one.framework for one in facts))]
    for of in ("settings", "versions", "machine"):
        first, second = (getattr(one, of) for one in facts)
        rows += [(_fact(name), _shown(first.get(name)), _shown(second.get(name)))
                 for name in dict.fromkeys((*first, *second))]
    return rows


def same_settings(alignment: Alignment, language: str) -> str:
    """The settings that explain time: those that both sides state alike, and whether others differ."""
    first, second = (one.settings for one in alignment.facts)
    listed = [f"{name} {_shown(value)}" for name, value in first.items() if second.get(name) == value]
    told = [say(language, "same settings", settings=", ".join(listed))] if listed else []
    return " ".join(told + ([say(language, "other settings")] if first != second else []))


def _named(key: str) -> Mapping[str, str]:
    return {language: say(language, key) for language in LANGUAGES}


def _fact(name: str) -> Mapping[str, str]:
    """The label of what a side states; versions, and what a script of one's own states, by their own names."""
    return {language: WORDS[language].get(f"fact {name}", name) for language in LANGUAGES}


def _rate(count: int, seconds: float) -> str:
    if not seconds:
        return MISSING
    return f"{count / seconds:,.0f}" if count / seconds >= 100 else f"{count / seconds:.3g}"


def _shown(value: Any) -> str:
    return MISSING if value is None else str(value)
