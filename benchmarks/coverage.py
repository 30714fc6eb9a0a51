"""How often 95 % intervals cover the true score, and how often the test finds a difference between equal systems.

Articles and their paragraphs differ in difficulty. Questions are drawn as `--limit` and `--max-dev` draw them, from
simulated files whose articles are as large as those of the shipped sample. This package's intervals and tests are
compared with those that treat questions as independent.

    python benchmarks/coverage.py --trials 1000
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from jittor_lora.data.sources import load_data
from jittor_lora.data.subset import choose
from jittor_lora.evaluation.bootstrap import mean_interval, paired_difference
from jittor_lora.evaluation.units import Units

# Standard deviations of logits: (of articles, of paragraphs within them).
SHARED, OWN = (0.35, 0.6), (0.15, 0.4)  # shared by both systems; specific to each
RESAMPLES = 1000
CASES = (  # articles in the file, questions drawn (None: all), score in percent
    (16, 200, 60), (16, 1000, 60), (16, None, 60), (16, 200, 10), (16, 200, 90), (48, 200, 60), (48, 1000, 60),
    (10, 200, 60), (10, None, 60), (9, 200, 60), (9, None, 60), (3, 200, 60))
TRUTHS = ("new articles", "new paragraphs", "whole file")
NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 500) for i in range(500)])


@dataclass(frozen=True)
class Sample:
    """Answers (n,) of two equally good systems, 1 if right, and the values that the first one's score estimates."""

    answers: tuple[np.ndarray, np.ndarray]
    units: Units
    truths: Sequence[float]


@dataclass(frozen=True)
class Found:
    """How good the intervals and tests of a case are.

    Attributes:
        unit: what was resampled.
        covered: fraction of the intervals that cover each of `TRUTHS`.
        width: their mean width.
        alarms: fraction of the tests with a p-value of at most 0.05.
    """

    unit: str
    covered: Sequence[float]
    width: float
    alarms: float


def shipped_sizes() -> list[list[int]]:
    """Questions per paragraph, for each article of the shipped sample."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for name in ("sample-dev", "sample-train"):
        for paragraph in load_data(name).paragraphs:
            sizes[paragraph.title].append(len(paragraph.questions))
    return list(sizes.values())


def samples(sizes: Sequence[Sequence[int]], articles: int, questions: int | None, percent: float, trials: int,
            seed: int = 0) -> Iterator[Sample]:
    """Questions drawn from files of `articles` articles; each trial has a new file and new difficulties."""
    random = np.random.default_rng(seed)
    logit = NormalDist().inv_cdf(percent / 100) * 1.7  # roughly, as a logistic function is wider than a normal one
    of_articles, of_paragraphs = np.hypot(SHARED, OWN)
    everywhere = right(logit + np.hypot(of_articles, of_paragraphs) * NORMAL).mean()
    for trial in range(trials):
        file = [sizes[i] for i in random.integers(len(sizes), size=articles)]
        means, parts = np.empty((2, articles)), []  # logits of articles by system, of paragraphs by article and system
        shared = SHARED[0] * random.normal(size=articles)
        for system in range(2):
            means[system] = logit + shared + OWN[0] * random.normal(size=articles)
        for article, paragraphs in enumerate(file):
            count = len(paragraphs)
            parts.append(means[:, article, None] + SHARED[1] * random.normal(size=count)
                         + OWN[1] * random.normal(size=(2, count)))
        total = sum(map(sum, file))
        chosen = choose(file, questions or total, trial)
        places = [place for place, count in chosen.items() for _ in range(count)]
        chances = np.array([right(parts[article][:, paragraph]) for article, paragraph in places])
        first, second = (random.random(chances.shape) < chances).T.astype(float)
        drawn = [article for article, _ in places]
        elsewhere = right(means[0][:, None] + of_paragraphs * NORMAL).mean(axis=1)[drawn].mean()
        whole = sum(float(right(part[0]) @ paragraphs) for part, paragraphs in zip(parts, file)) / total
        units = Units.choose([(str(article), str(paragraph)) for article, paragraph in places])
        yield Sample((first, second), units, (everywhere, elsewhere, whole))


def right(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def measured(drawn: Sequence[Sample], alone: bool = False) -> Found:
    """Intervals and tests over all samples; `alone` treats questions as independent."""
    covered, widths, alarms = [], [], []
    for seed, sample in enumerate(drawn):
        units = None if alone else sample.units
        interval = mean_interval(sample.answers[0], units, resamples=RESAMPLES, seed=seed)
        test = paired_difference(*sample.answers, units, resamples=RESAMPLES, seed=seed)
        covered.append([interval.low <= truth <= interval.high for truth in sample.truths])
        widths.append(interval.high - interval.low)
        alarms.append(test.p_value <= 0.05)
    return Found("question" if alone else drawn[0].units.name, np.mean(covered, axis=0).tolist(),
                 float(np.mean(widths)), float(np.mean(alarms)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=1000, help="samples per case")
    trials = parser.parse_args().trials
    sizes = shipped_sizes()
    heads = "articles", "questions", "score", "resampled", *TRUTHS, "width", "alarms"
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for articles, questions, percent in CASES:
        drawn = list(samples(sizes, articles, questions, percent, trials))
        for found in (measured(drawn), measured(drawn, alone=True)):
            row = [str(articles), f"{questions:,}" if questions else "all", f"{percent}", f"{found.unit}s",
                   *(f"{100 * share:.1f}" for share in found.covered), f"{100 * found.width:.1f}",
                   f"{100 * found.alarms:.1f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
