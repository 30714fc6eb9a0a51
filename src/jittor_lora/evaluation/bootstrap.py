"""Bootstrap intervals of means over questions, and a paired test of two systems, both resampling whole units.

Scores of questions about the same paragraph or article are correlated: see `units.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.evaluation.units import Units

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWEST_UNITS = 5  # with fewer, even the extremes of the resampled means lie within the true interval
METHOD = "bootstrap of whole units, expanded percentiles"
_CHUNK_ELEMENTS = 1_000_000  # drawn at once: 8 MB of float64


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean of second − first, its confidence interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p_value: float


def mean_interval(values: Sequence[float], units: Units | None = None, *, scale: tuple[float, float] = (0.0, 1.0),
                  resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0) -> Estimate:
    """Bootstrap interval of the mean of `values` (n,), drawing whole units with replacement.

    The mean is a ratio, the units' sums over their question counts, and both are resampled (Davison and Hinkley 1997,
    "Bootstrap Methods and their Application", section 3.8). The percentiles are expanded for the number of units, see
    `percentiles`. If all values are equal, the interval is that value.

    Args:
        units: the unit of each question; by default each question is its own.
        scale: the smallest and largest possible value; with fewer than `FEWEST_UNITS` units, they are the interval.

    Raises:
        UserError: `values` is empty.
    """
    values = _checked(values)
    sums = _by_unit(values, units)
    ends = scale
    if len(sums) >= FEWEST_UNITS:
        drawn = resampled_sums(sums, resamples, seed)
        # Clipped because a mean of n equal values can differ from them in the last bit.
        ends = np.clip(percentiles(drawn[:, 0] / drawn[:, 1], len(sums), confidence), values.min(), values.max())
    return Estimate(float(values.mean()), float(ends[0]), float(ends[1]))


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Sums (resamples, k) of n rows of `statistics` (n, k), drawn with replacement for each resample.

    Also serves corpus-level scores that are functions of sums over the texts. The same seed draws the same rows for
    every score.
    """
    generator, count = np.random.default_rng(seed), len(statistics)
    sums = [np.empty((0, statistics.shape[1]))]
    for chunk in _chunks(resamples, count):
        rows = generator.integers(count, size=(chunk, count)) + count * np.arange(chunk)[:, None]
        times = np.bincount(rows.ravel(), minlength=chunk * count).reshape(chunk, count)
        sums.append(times.astype(np.float64) @ statistics)
    return np.concatenate(sums)


def percentiles(values: np.ndarray, units: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The expanded percentile interval of means `values` (resamples,) resampled from `units` units.

    With few units, plain percentiles are too narrow, like a normal interval without Student's t and without the factor
    n / (n − 1) of the variance. Going further into the tails makes up for both (Hesterberg 2015, "What Teachers Should
    Know About the Bootstrap", section 5.3).
    """
    tail = _expanded_tail(units, confidence)
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def paired_difference(first: Sequence[float], second: Sequence[float], units: Units | None = None, *,
                      largest: float = 1.0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE,
                      seed: int = 0) -> Difference:
    """Compare two systems' values (n,) on the same questions, in the same order.

    The interval is the bootstrap interval of the mean of second − first. The p-value is from the paired randomisation
    test (Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses"), which swaps the systems' answers to whole
    units: unlike a bootstrap p-value, it stays valid for few units, and never falls below 1 / (resamples + 1).

    Args:
        units: the unit of each question; by default each question is its own.
        largest: the largest possible difference.

    Raises:
        UserError: there are no values, or the numbers of values differ.
    """
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise UserError(f"A paired comparison needs the same questions on both sides, found {len(first)} and "
                        f"{len(second)}. Evaluate both systems on the same data with the same limit.")
    differences = second - first
    interval = mean_interval(differences, units, scale=(-largest, largest), resamples=resamples,
                             confidence=confidence, seed=seed)
    sums = _by_unit(differences, units)[:, 0]
    tolerance = 1e-12 * np.abs(differences).sum()  # equal sums added in another order
    as_extreme = sum(int((np.abs(flipped) >= abs(sums.sum()) - tolerance).sum())
                     for flipped in _sign_flipped_sums(sums, resamples, seed))
    return Difference(interval.mean, interval.low, interval.high, (as_extreme + 1) / (resamples + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted to bound the chance of any false alarm among them.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t. With t = √freedom · tan θ, the density of θ is proportional to (cos θ)^(freedom − 1)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    density = np.cos(angles).clip(0) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(probability, below / below[-1], angles)))


@functools.lru_cache(maxsize=256)
def _expanded_tail(units: int, confidence: float) -> float:
    if units == 1:
        return 0.0
    tail = (1 - confidence) / 2
    return NormalDist().cdf(student_quantile(tail, units - 1) * np.sqrt(units / (units - 1)))


def _checked(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise UserError("No questions to compute an interval over: the data set is empty.")
    return values


def _by_unit(values: np.ndarray, units: Units | None) -> np.ndarray:
    """(units, 2): the sum and the number of each unit's values."""
    if units is None:
        return np.column_stack([values, np.ones_like(values)])
    index_of: dict = {}
    indices = [index_of.setdefault(unit, len(index_of)) for unit in units.of]
    return np.column_stack([np.bincount(indices, values), np.bincount(indices)])


def _chunks(resamples: int, count: int) -> Iterator[int]:
    """Sizes of chunks that make up `resamples`, each small enough for memory."""
    chunk = max(1, _CHUNK_ELEMENTS // count)
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def _sign_flipped_sums(differences: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for chunk in _chunks(resamples, len(differences)):
        flips = generator.integers(2, size=(chunk, len(differences)), dtype=np.int8)
        yield (1.0 - 2.0 * flips) @ differences
