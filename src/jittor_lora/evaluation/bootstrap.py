"""How sure a mean over questions is: bootstrap intervals, and a test between two systems, of whole units.

Questions about one paragraph are answered alike, and so are those about one article: see `units.py`.
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
FEWEST_UNITS = 5  # of fewer, resampled, the extremes lie closer to each other than an interval's ends
METHOD = "bootstrap of whole units, expanded percentiles"
_CHUNK_ELEMENTS = 1_000_000  # drawn at a time: 8 MB of float64


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of second − first, the ends of its interval, and the two-sided p-value of there being none."""

    mean: float
    low: float
    high: float
    p_value: float


def mean_interval(values: Sequence[float], units: Units | None = None, *, scale: tuple[float, float] = (0.0, 1.0),
                  resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0) -> Estimate:
    """Bootstrap interval of the mean of `values` (n,), units drawn with replacement and each taken whole.

    The mean is a ratio, of the units' sums over their numbers of questions, and both are drawn anew (Davison and
    Hinkley 1997, "Bootstrap Methods and their Application", section 3.8). The percentiles are expanded for the number
    of units, see `percentiles`. The interval of equal values is that value alone.

    Args:
        units: of the questions; by default each question is one.
        scale: the least and the greatest possible value, which are the interval's ends where there are fewer than
            `FEWEST_UNITS`.

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
    """Sums (resamples, k) of the rows of `statistics` (n, k), n of them drawn with replacement each time.

    Also for scores of a whole corpus that are functions of sums over its texts. With one seed, the same rows are drawn
    for every score.
    """
    generator, count = np.random.default_rng(seed), len(statistics)
    sums = [np.empty((0, statistics.shape[1]))]
    for chunk in _chunks(resamples, count):
        rows = generator.integers(count, size=(chunk, count)) + count * np.arange(chunk)[:, None]
        times = np.bincount(rows.ravel(), minlength=chunk * count).reshape(chunk, count)
        sums.append(times.astype(np.float64) @ statistics)
    return np.concatenate(sums)


def percentiles(values: np.ndarray, units: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The ends of the expanded percentile interval of means resampled from `units` units; `values` is (resamples,).

    Plain percentiles are too narrow for few units, as a normal interval without Student's t and without the factor
    n / (n − 1) of the variance would be. Both are made up for by going further into the tails (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap", section 5.3).
    """
    tail = _expanded_tail(units, confidence)
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def paired_difference(first: Sequence[float], second: Sequence[float], units: Units | None = None, *,
                      largest: float = 1.0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE,
                      seed: int = 0) -> Difference:
    """Compare two systems' values (n,) on the same questions, in the same order.

    The interval is the bootstrap's of the mean of second − first. The p-value is that of the paired randomisation test
    (Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses"), which exchanges the systems' answers to whole
    units: unlike a bootstrap p-value it stays honest for few units, and never falls below 1 / (resamples + 1).

    Args:
        units: of the questions; by default each question is one.
        largest: the greatest possible difference.

    Raises:
        UserError: there are no values, or not as many in both.
    """
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise UserError(f"A paired comparison needs the same questions on both sides, found {len(first)} and "
                        f"{len(second)}. Evaluate both systems on the same data with the same limit.")
    differences = second - first
    interval = mean_interval(differences, units, scale=(-largest, largest), resamples=resamples,
                             confidence=confidence, seed=seed)
    sums = _by_unit(differences, units)[:, 0]
    tolerance = 1e-12 * np.abs(differences).sum()  # the same sum in another order
    as_extreme = sum(int((np.abs(flipped) >= abs(sums.sum()) - tolerance).sum())
                     for flipped in _sign_flipped_sums(sums, resamples, seed))
    return Difference(interval.mean, interval.low, interval.high, (as_extreme + 1) / (resamples + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that the chance of one false alarm among all stays what it says.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t. With t = √freedom · tan θ, θ's density is proportional to (cos θ)^(freedom − 1)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    density = np.cos(angles).clip(0) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(probability, below / below[-1], angles)))


@functools.lru_cache(maxsize=256)
def _expanded_tail(units: int, confidence: float) -> float:
    if units == 1:
        return 0.0
    wanted = (1 - confidence) / 2
    return NormalDist().cdf(student_quantile(wanted, units - 1) * np.sqrt(units / (units - 1)))


def _checked(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise UserError("No questions to compute an interval over: the data set is empty.")
    return values


def _by_unit(values: np.ndarray, units: Units | None) -> np.ndarray:
    """(units, 2): the sum of each unit's values, and how many there are."""
    if units is None:
        return np.column_stack([values, np.ones_like(values)])
    numbers: dict = {}
    at = [numbers.setdefault(unit, len(numbers)) for unit in units.of]
    return np.column_stack([np.bincount(at, values), np.bincount(at)])


def _chunks(resamples: int, count: int) -> Iterator[int]:
    """Numbers of resamples that add up to `resamples`, each small enough for memory."""
    chunk = max(1, _CHUNK_ELEMENTS // count)
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def _sign_flipped_sums(differences: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for chunk in _chunks(resamples, len(differences)):
        flips = generator.integers(2, size=(chunk, len(differences)), dtype=np.int8)
        yield (1.0 - 2.0 * flips) @ differences
