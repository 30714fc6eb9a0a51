"""Restaurant descriptions with references, the same everywhere, from the shipped part of E2E's development set."""

from __future__ import annotations

from jittor_lora.data.sources import load_data


def e2e_texts(count: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(references, predictions) of `count` meanings; predictions are first references, every fifth one truncated."""
    references, predictions = {}, {}
    for name, texts in load_data("e2e-dev", "dev", "evaluation").references().items():
        if len(texts) > 1 and len(references) < count:
            words = texts[0].split(" ")
            predictions[name] = " ".join(words[:6] if len(references) % 5 == 0 else words)
            references[name] = texts[1:]
    return references, predictions
