"""Counts of n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def counts(words: Sequence[str], longest: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of up to `longest` words occurs."""
    return Counter(tuple(words[start:start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1))


def highest_counts(texts: Sequence[Sequence[str]], longest: int) -> Counter[tuple[str, ...]]:
    """The highest count of each n-gram in any one of `texts`."""
    highest: Counter[tuple[str, ...]] = Counter()
    for words in texts:
        highest |= counts(words, longest)
    return highest
