"""Distances between arrays and where in an order of computation they arise."""

from __future__ import annotations

import math
from typing import Mapping, Optional, Sequence

import numpy as np

from jittor_lora.files.finite import all_finite

SMALL_SHARE = 1e-3  # of the largest norm of its kind: an array below it is measured against this
ROUNDING = 3e-7  # relative; differences below it say nothing about where they come from


def norm(array: np.ndarray) -> float:
    """Euclidean, in float64; infinite if a number is not finite."""
    if not all_finite(array):
        return math.inf
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def relative(first: np.ndarray, second: np.ndarray, least: float = 0.0) -> float:
    """‖first − second‖ over the larger of both norms and `least`: from 0 to 2, the same in both directions.

    Infinite if the shapes differ or a number is not finite.
    """
    if first.shape != second.shape:
        return math.inf
    scale = max(norm(first), norm(second))
    if not math.isfinite(scale):
        return math.inf
    scale = max(scale, least)
    return norm(np.asarray(first, np.float64) - second) / scale if scale else 0.0


def relative_number(first: float, second: float) -> float:
    """|first − second| over the larger of both; infinite if one is not finite."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.inf
    scale = max(abs(first), abs(second))
    return abs(first - second) / scale if scale else 0.0


def arrays_apart(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray],
                 names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """(name, `relative`) of arrays of one kind; one that a side lacks is infinitely far."""
    norms = [norm(side[name]) for side in (first, second) for name in names if name in side]
    least = SMALL_SHARE * max((value for value in norms if math.isfinite(value)), default=0.0)
    return tuple((name, relative(first[name], second[name], least) if name in first and name in second else math.inf)
                 for name in names)


def largest(rows: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The first row with the largest difference; ("", 0.0) without rows."""
    return max(rows, key=lambda row: row[1], default=("", 0.0))


def origin(differences: Sequence[float], tolerance: float) -> Optional[int]:
    """The index at which a difference arises that exceeds `tolerance` there or later; None if none does.

    Small differences are amplified on their way, so it is not where the tolerance is first exceeded, but on the way
    there where the difference is the largest multiple of everything before.
    """
    first = next((at for at, value in enumerate(differences) if not value <= tolerance), None)
    if first is None:
        return None
    before, found, most = ROUNDING, first, 0.0
    for at, value in enumerate(differences[:first + 1]):
        if value / before > most:
            found, most = at, value / before
        before = max(before, value)
    return found
