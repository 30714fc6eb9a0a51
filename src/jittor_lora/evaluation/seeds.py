"""Several runs of one system that differ in their seed: mean, standard deviation, and intervals over the runs.

These intervals are about new seeds, with the same training data and the same questions. Those that resample
paragraphs or articles (`bootstrap.py`) are about new questions for the very models that answered. Neither contains the
other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from jittor_lora.evaluation.bootstrap import CONFIDENCE, Estimate, student_quantile
from jittor_lora.evaluation.compare import table
from jittor_lora.evaluation.standings import Standing, interval

CLAIM = "95 % intervals by Student's t over the runs are for new seeds on the same questions"


@dataclass(frozen=True)
class Spread(Estimate):
    """The mean of some runs, its interval, and the standard deviation (with n − 1) of one run."""

    deviation: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and interval m ± t · s / √n of at least two runs, whose values are taken as normally distributed."""
    middle, deviation = mean(values), stdev(values)
    half = _quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Spread(middle, middle - half, middle + half, deviation, len(values))


def welch_difference(first: Spread, second: Spread) -> Estimate:
    """second − first with its interval, for deviations that may differ (Welch 1947, "The Generalization of 'Student's'
    Problem when Several Different Population Variances are Involved")."""
    parts = [one.deviation**2 / one.count for one in (first, second)]
    total, difference = sum(parts), second.mean - first.mean
    if total == 0.0:
        return Estimate(difference, difference, difference)
    freedom = 1 / sum((part / total)**2 / (one.count - 1) for part, one in zip(parts, (first, second)))
    half = _quantile(freedom) * math.sqrt(total)
    return Estimate(difference, difference - half, difference + half)


@dataclass(frozen=True)
class Runs:
    """The runs of a system, in percent.

    Attributes:
        systems: their names.
        exact_match_gain, f1_gain: from the first system of several runs, in points; None for that one itself.
    """

    name: str
    systems: tuple[str, ...]
    exact_match: Spread
    f1: Spread
    exact_match_gain: Estimate | None = None
    f1_gain: Estimate | None = None


def runs_of(standings: Sequence[Standing], groups: Mapping[str, Sequence[str]]) -> list[Runs]:
    """What the standings of single runs say about the systems they are runs of.

    Args:
        groups: name of a system -> those of its runs, at least two.
    """
    found: list[Runs] = []
    metrics = {one.name: one.metrics for one in standings}
    for name, members in groups.items():
        scores = [spread([getattr(metrics[member], field) for member in members]) for field in ("exact_match", "f1")]
        gains = [welch_difference(before, after) for before, after in zip((found[0].exact_match, found[0].f1), scores)
                 ] if found else [None, None]
        found.append(Runs(name, tuple(members), *scores, *gains))
    return found


def runs_table(found: Sequence[Runs]) -> str:
    """As a table for the terminal."""
    rows = [("", "runs", "EM", "±", "95 %", "F1", "±", "95 %", "EM gain", "95 %", "F1 gain", "95 %")]
    rows += [(one.name, f"{one.f1.count}", *shown(one.exact_match), *shown(one.f1), *_gain(one.exact_match_gain),
              *_gain(one.f1_gain)) for one in found]
    rows = rows if len(found) > 1 else [row[:8] for row in rows]
    against = f"; gain: against {found[0].name}" if len(found) > 1 else ""
    return f"{table(rows)}\nmeans over runs ± standard deviation of a run, in percent; {CLAIM}{against}"


def runs_json(found: Sequence[Runs]) -> list[dict[str, Any]]:
    return [{**asdict(one), "confidence": CONFIDENCE} for one in found]


def shown(found: Spread) -> tuple[str, str, str]:
    """Mean, standard deviation and interval."""
    return f"{found.mean:.2f}", f"{found.deviation:.2f}", interval(found.low, found.high)


def _gain(found: Estimate | None) -> tuple[str, str]:
    return ("", "") if found is None else (f"{found.mean:+.2f}", interval(found.low, found.high, "+"))


@functools.lru_cache(maxsize=256)
def _quantile(freedom: float) -> float:
    return student_quantile((1 + CONFIDENCE) / 2, freedom)
