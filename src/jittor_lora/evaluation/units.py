"""What a score is an estimate for: questions come in paragraphs, and these in articles, and are alike within them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from jittor_lora.data.report import counted

UNITS = ("article", "paragraph", "prompt", "question")
ENOUGH_ARTICLES = 10  # fewer, drawn whole, cover too seldom: benchmarks/coverage.py


@dataclass(frozen=True)
class Units:
    """The units that are resampled whole.

    Attributes:
        name: one of `UNITS`. Intervals and tests are about other ones of that kind:
            new articles, or new paragraphs of the same articles.
        of: the unit of each question, in the order of the questions.
    """

    name: str
    of: tuple[Hashable, ...]

    @classmethod
    def choose(cls, places: Sequence[tuple[str, ...]]) -> Units:
        """The largest unit of which there are enough.

        Args:
            places: of each question, its article and its paragraph; empty for a prompt, which stands alone.
        """
        if not all(places):
            return cls("prompt", tuple(range(len(places))))
        articles = tuple(place[0] for place in places)
        return cls("article", articles) if len(set(articles)) >= ENOUGH_ARTICLES else cls("paragraph", tuple(places))

    @classmethod
    def alone(cls, count: int) -> Units:
        """`count` questions of which nothing else is known."""
        return cls("question", tuple(range(count)))

    def __len__(self) -> int:
        """The number of units."""
        return len(set(self.of))

    def part(self, indices: Iterable[int]) -> Units:
        """Those of some of the questions."""
        return Units(self.name, tuple(self.of[index] for index in indices))


def sample_shown(count: int, unit: str, units: int) -> str:
    """For people: 200 questions of 16 articles."""
    asked = counted(count, "prompt" if unit == "prompt" else "question")
    return f"{asked} of {counted(units, unit)}" if unit in ("article", "paragraph") else asked
