"""Choosing a subset of the examples, the same one for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Keeps this choice independent of the batch order drawn from the same seed.
SPAWN_KEY = (1,)


def shuffled(count: int, random: np.random.Philox) -> np.ndarray:
    """A random permutation of 0…count-1, the same on every machine and numpy version (it uses only raw bits)."""
    return np.argsort(random.random_raw(count), kind="stable")


def choose(articles: Sequence[Sequence[int]], count: int, seed: int) -> dict[tuple[int, int], int]:
    """Choose `count` questions, spread over the articles, in whole paragraphs as far as possible.

    Articles, and the paragraphs within each, are shuffled; then each article in turn contributes its next paragraph
    with all its questions, round after round. Only the last paragraph chosen may be cut, to its first questions. For
    one seed, a smaller choice is thus a subset of every larger one.

    Args:
        articles: the number of questions per paragraph per article.
        count: number of questions, 0 or more; all if there are fewer.
        seed: 0 or more.

    Returns:
        (article, paragraph) -> number of its questions, in the order of choice.
    """
    random = np.random.Philox(np.random.SeedSequence(seed, spawn_key=SPAWN_KEY))
    turns = []
    for place, article in enumerate(shuffled(len(articles), random)):
        order = shuffled(len(articles[article]), random)
        turns += [(turn, place, int(article), int(paragraph)) for turn, paragraph in enumerate(order)]
    chosen: dict[tuple[int, int], int] = {}
    for _, _, article, paragraph in sorted(turns):
        questions = min(articles[article][paragraph], count)
        if not questions:
            break
        chosen[article, paragraph] = questions
        count -= questions
    return chosen
