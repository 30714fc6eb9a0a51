"""The units that intervals resample: questions within one paragraph, or one article, have correlated scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from jittor_lora.data.report import counted

UNITS = ("article", "paragraph", "prompt", "question")
ENOUGH_ARTICLES = 10  # with fewer, intervals cover the true score too rarely: benchmarks/coverage.py


@dataclass(frozen=True)
class Units:
    """Units that are resampled whole.

    Attributes:
        name: one of `UNITS`. Intervals and tests generalise to new units of that kind: new articles, or new
            paragraphs of the same articles.
        of: the unit of each question, in the order of the questions.
    """

    name: str
    of: tuple[Hashable, ...]

    @classmethod
    def choose(cls, places: Sequence[tuple[str, ...]]) -> Units:
        """The largest unit that the data have enough of.

        Args:
            places: article and paragraph of each question; empty for a prompt, which is its own unit.
        """
        if not all(places):
            return cls("prompt", tuple(range(len(places))))
        articles = tuple(place[0] for place in places)
        return cls("article", articles) if len(set(articles)) >= ENOUGH_ARTICLES else cls("paragraph", tuple(places))

    @classmethod
    def independent(cls, count: int) -> Units:
        """Each of `count` questions is its own unit."""
        return cls("question", tuple(range(count)))

    def __len__(self) -> int:
        """The number of units."""
        return len(set(self.of))

    def part(self, indices: Iterable[int]) -> Units:
        """The units of the questions at `indices`."""
        return Units(self.name, tuple(self.of[index] for index in indices))


def sample_shown(count: int, unit: str, units: int) -> str:
    """In words: 200 questions of 16 articles."""
    questions = counted(count, "prompt" if unit == "prompt" else "question")
    return f"{questions} of {counted(units, unit)}" if unit in ("article", "paragraph") else questions
