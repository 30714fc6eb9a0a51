"""Several runs of one system that differ in their seed: mean, standard deviation, and intervals over the runs.

These intervals are about new seeds, with the same training data and the same questions. Those that resample
paragraphs or articles (`bootstrap.py`) are about new questions for the very models that answered. Neither contains the
other, so a difference between systems has both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from jittor_lora.evaluation.bootstrap import CONFIDENCE, Difference, Estimate, student_quantile
from jittor_lora.evaluation.compare import table
from jittor_lora.evaluation.standings import interval, paired_differences, percentages, shown_difference
from jittor_lora.evaluation.systems import System
from jittor_lora.evaluation.text import TextScore

ScoredTexts = Mapping[str, Mapping[str, Mapping[str, TextScore]]]  # system -> group of prompts -> name

CLAIM = "95 % intervals by Student's t over the runs are for new seeds on the same questions"
TEXT_CLAIM = CLAIM.replace("questions", "prompts")


@dataclass(frozen=True)
class Spread(Estimate):
    """The mean of some runs, its interval, and the standard deviation (with n − 1) of one run."""

    deviation: float
    count: int


# system -> group of prompts -> name of a text score
TextSpreads = Mapping[str, Mapping[str, Mapping[str, Spread]]]


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
        unit: what the intervals for new questions resample, see `units.py`.
        exact_match_gain, f1_gain: from the first system of several runs, in points, with intervals for new seeds; None
            for that one itself.
        exact_match_difference, f1_difference: the same gains, of each question's mean over the runs, with intervals and
            p-values for new units and these very runs; p-values are adjusted for the number of systems.
    """

    name: str
    systems: tuple[str, ...]
    exact_match: Spread
    f1: Spread
    unit: str
    exact_match_gain: Estimate | None = None
    f1_gain: Estimate | None = None
    exact_match_difference: Difference | None = None
    f1_difference: Difference | None = None


def runs_of(systems: Sequence[System], groups: Mapping[str, Sequence[str]], seed: int = 0) -> list[Runs]:
    """What single runs on the same questions say about the systems they are runs of.

    Args:
        groups: name of a system -> those of its runs, at least two.
        seed: of the resamples.
    """
    if not groups:
        return []
    by_name = {system.name: system for system in systems}
    members = {name: [by_name[run] for run in runs] for name, runs in groups.items()}
    spreads = {name: [spread([getattr(run.score, field) for run in runs]) for field in ("exact_match", "f1")]
               for name, runs in members.items()}
    first, *others = members
    units = members[first][0].score.units
    differences = zip(*(paired_differences(percentages(members[first], field),
                                           [percentages(members[name], field) for name in others], units, seed)
                        for field in ("em", "f1")))
    found = [Runs(first, tuple(groups[first]), *spreads[first], units.name)]
    for name, both in zip(others, differences):
        gains = map(welch_difference, spreads[first], spreads[name])
        found.append(Runs(name, tuple(groups[name]), *spreads[name], units.name, *gains, *both))
    return found


def runs_table(found: Sequence[Runs]) -> str:
    """As a table for the terminal."""
    rows = [("", "runs", "EM", "±", "95 %", "F1", "±", "95 %")]
    rows += [(one.name, f"{one.f1.count}", *shown(one.exact_match), *shown(one.f1)) for one in found]
    lines = [table(rows), f"means over runs ± standard deviation of a run, in percent; {CLAIM}"]
    if len(found) > 1:
        seeds, units = "new seeds", f"new {found[0].unit}s"
        rows = [("", "EM gain", seeds, units, "p", "F1 gain", seeds, units, "p")]
        rows += [(one.name, *_gain(one.exact_match_gain, one.exact_match_difference),
                  *_gain(one.f1_gain, one.f1_difference)) for one in found[1:]]
        lines += ["", table(rows), f"gain: against {found[0].name}, with 95 % intervals for new seeds on the same "
                  f"questions, and for {units} and these very runs; p is of the latter"]
    return "\n".join(lines)


def text_spreads(texts: ScoredTexts, groups: Mapping[str, Sequence[str]]) -> TextSpreads:
    """System -> group of prompts -> name of a text score -> its spread over the runs; without scores that a run lacks.

    Args:
        texts: of each run.
        groups: name of a system -> those of its runs, at least two.
    """
    found: dict[str, dict[str, dict[str, Spread]]] = {}
    for name, runs in groups.items():
        found[name] = {}
        for group, scores in texts[runs[0]].items():
            values = {score: [texts[run][group][score].value for run in runs] for score in scores}
            found[name][group] = {score: spread(own) for score, own in values.items() if None not in own}
    return found


def text_runs_table(found: TextSpreads) -> str:
    """As a table for the terminal."""
    rows = [("", *(cell for name in found for cell in (name, "±", "95 %")))]
    rows += [(label, *(cell for one in spreads for cell in (shown(one) if one else ("absent", "", ""))))
             for label, spreads in text_rows(found)]
    return f"{table(rows)}\nmeans over runs ± standard deviation of a run; {TEXT_CLAIM}"


def text_rows(found: TextSpreads) -> list[tuple[str, list[Spread | None]]]:
    """(name of a score, with the group of prompts if there are several; its spread for each system, None if absent)."""
    groups = next(iter(found.values()))
    names = {(group, name): f"{name}, {group}" if len(groups) > 1 else name
             for scores in found.values() for group, own in scores.items() for name in own}
    return [(label, [scores[group].get(name) for scores in found.values()]) for (group, name), label in names.items()]


def runs_json(found: Sequence[Runs]) -> list[dict[str, Any]]:
    return [{**asdict(one), "confidence": CONFIDENCE} for one in found]


def shown(found: Spread) -> tuple[str, str, str]:
    """Mean, standard deviation and interval."""
    return f"{found.mean:.2f}", f"{found.deviation:.2f}", interval(found.low, found.high)


def _gain(seeds: Estimate, questions: Difference) -> tuple[str, str, str, str]:
    return f"{seeds.mean:+.2f}", interval(seeds.low, seeds.high, "+"), *shown_difference(questions)[1:]


@functools.lru_cache(maxsize=256)
def _quantile(freedom: float) -> float:
    return student_quantile((1 + CONFIDENCE) / 2, freedom)
