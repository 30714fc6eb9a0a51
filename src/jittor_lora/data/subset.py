"""Choosing some of the examples, the same ones for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Keeps this choice apart from the order of batches drawn from the same seed.
SPAWN_KEY = (1,)


def shuffled(count: int, random: np.random.Philox) -> np.ndarray:
    """A random order of 0…count-1, the same on every machine and numpy version (only raw bits are used)."""
    return np.argsort(random.random_raw(count), kind="stable")


def choose(articles: Sequence[Sequence[int]], count: int, seed: int) -> dict[tuple[int, int], int]:
    """Choose `count` questions, spread over the articles, in whole paragraphs as far as possible.

    Articles and the paragraphs within each are shuffled; then each article in turn gives its next paragraph with
    all its questions, round after round. Only the last paragraph chosen may give some of its questions, the first
    ones. So for one seed a smaller choice is contained in every larger one.

    Args:
        articles: the number of questions of each paragraph of each article.
        count: how many questions, 0 or more; all if there are fewer.
        seed: 0 or more.

    Returns:
        (article, paragraph) -> how many of its questions, in the order of choice.
    """
    random = np.random.Philox(np.random.SeedSequence(seed, spawn_key=SPAWN_KEY))
    turns = []
    for place, article in enumerate(shuffled(len(articles), random)):
        order = shuffled(len(articles[article]), random)
        turns += [(turn, place, int(article), int(paragraph)) for turn, paragraph in enumerate(order)]
    chosen: dict[tuple[int, int], int] = {}
    for _, _, article, paragraph in sorted(turns):
        taken = min(articles[article][paragraph], count)
        if not taken:
            break
        chosen[article, paragraph] = taken
        count -= taken
    return chosen
