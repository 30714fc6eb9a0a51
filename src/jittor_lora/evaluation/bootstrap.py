"""How sure a mean over questions is: bootstrap intervals, and a test between two systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jittor_lora.errors import UserError

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK_ELEMENTS = 2_000_000  # drawn at a time: 16 MB of float64


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


def mean_interval(values: Sequence[float], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE,
                  seed: int = 0) -> Estimate:
    """Percentile bootstrap interval of the mean of `values` (n,), questions drawn with replacement.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13. The interval of one value, or of equal
    values, is that value alone: the data says nothing about the spread.

    Raises:
        UserError: `values` is empty.
    """
    values = _checked(values)
    # Clipped because a mean of n equal values can differ from them in the last bit.
    low, high = np.clip(percentiles(_resampled_means(values, resamples, seed), confidence), values.min(), values.max())
    return Estimate(float(values.mean()), float(low), float(high))


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Sums (resamples, k) of the rows of `statistics` (n, k), n of them drawn with replacement each time.

    For scores of a whole corpus that are functions of sums over its texts. With one seed, the same texts are drawn for
    every score.
    """
    generator, count = np.random.default_rng(seed), len(statistics)
    sums = np.empty((resamples, statistics.shape[1]))
    for row in sums:
        row[:] = np.bincount(generator.integers(count, size=count), minlength=count) @ statistics
    return sums


def percentiles(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The ends of the percentile interval of resampled `values` (resamples,)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def paired_difference(first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES,
                      confidence: float = CONFIDENCE, seed: int = 0) -> Difference:
    """Compare two systems' values (n,) on the same questions, in the same order.

    The interval is the percentile bootstrap's of the mean of second − first. The p-value is that of the paired
    randomisation test (Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses"), which swaps the systems
    question by question: unlike a bootstrap p-value it stays honest for few questions, and never falls below
    1 / (resamples + 1).

    Raises:
        UserError: there are no values, or not as many in both.
    """
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise UserError(f"A paired comparison needs the same questions on both sides, found {len(first)} and "
                        f"{len(second)}. Evaluate both systems on the same data with the same limit.")
    differences = second - first
    interval = mean_interval(differences, resamples=resamples, confidence=confidence, seed=seed)
    observed = abs(differences.sum())
    tolerance = 1e-12 * np.abs(differences).sum()  # the same sum in another order
    as_extreme = sum(int((np.abs(sums) >= observed - tolerance).sum())
                     for sums in _sign_flipped_sums(differences, resamples, seed))
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


def _checked(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise UserError("No questions to compute an interval over: the data set is empty.")
    return values


def _chunks(resamples: int, count: int) -> Iterator[int]:
    """Numbers of resamples that add up to `resamples`, each small enough for memory."""
    chunk = max(1, _CHUNK_ELEMENTS // count)
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([
        values[generator.integers(len(values), size=(chunk, len(values)), dtype=np.int32)].mean(axis=1)
        for chunk in _chunks(resamples, len(values))])


def _sign_flipped_sums(differences: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for chunk in _chunks(resamples, len(differences)):
        flips = generator.integers(2, size=(chunk, len(differences)), dtype=np.int8)
        yield (1.0 - 2.0 * flips) @ differences
