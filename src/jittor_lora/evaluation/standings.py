"""Several systems on the same questions: scores, and differences from the first system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.evaluation.bootstrap import Difference, holm, paired_difference
from jittor_lora.evaluation.compare import table
from jittor_lora.evaluation.metrics import Metrics, summarize
from jittor_lora.evaluation.scoring import QuestionScore, same_rule
from jittor_lora.evaluation.systems import System
from jittor_lora.evaluation.text import TextScore
from jittor_lora.evaluation.units import Units


@dataclass(frozen=True)
class Standing:
    """A system's scores in percent, and their differences from the first system's.

    Attributes:
        exact_match, f1: paired differences in points, their p-values adjusted for the number of systems; None for the
            first system itself.
        gained, lost: questions with an exact match where the first system has none, and the reverse.
    """

    name: str
    metrics: Metrics
    exact_match: Difference | None = None
    f1: Difference | None = None
    gained: int = 0
    lost: int = 0


def standings(systems: Sequence[System], seed: int = 0) -> list[Standing]:
    """The standing of each of `systems`, in their order.

    Raises:
        UserError: two have the same name, or they were not scored on the same questions in the same order
            by the same rule.
    """
    names = [system.name for system in systems]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"several systems are named {', '.join(repeated)}; tell them apart with NAME=PATH.")
    first, *others = systems
    for system in others:
        if [q.id for q in system.score.per_question] != [q.id for q in first.score.per_question]:
            raise UserError(f"{first.name} and {system.name} were scored on different questions.")
    same_rule({system.name: system.score.scoring for system in systems})
    differences = {field: paired_differences(percentages([first], field), [percentages([one], field) for one in others],
                                             first.score.units, seed) for field in ("em", "f1")}
    return [Standing(first.name, summarize(first.score, seed)),
            *(Standing(system.name, summarize(system.score, seed), exact_match, f1,
                       _won(first.score.per_question, system.score.per_question),
                       _won(system.score.per_question, first.score.per_question))
              for system, exact_match, f1 in zip(others, differences["em"], differences["f1"]))]


def percentages(runs: Sequence[System], field: str) -> np.ndarray:
    """(questions,): "em" or "f1" of each question in percent, the mean over `runs`, which answered the same ones."""
    return 100 * np.mean([[getattr(question, field) for question in run.score.per_question] for run in runs], axis=0)


def paired_differences(first: np.ndarray, others: Sequence[np.ndarray], units: Units | None,
                       seed: int = 0) -> list[Difference]:
    """Each of `others` less `first`, values (questions,) in percent; p-values are adjusted for their number."""
    found = [paired_difference(first, other, units, largest=100, seed=seed) for other in others]
    return [replace(difference, p_value=p)
            for difference, p in zip(found, holm([difference.p_value for difference in found]))]


def standings_table(found: Sequence[Standing]) -> str:
    """The standings as a table for the terminal."""
    rows = [("", "EM", "95 %", "F1", "95 %", "EM gain", "95 %", "p", "F1 gain", "95 %", "p", "won", "lost")]
    for one in found:
        rows.append((one.name, f"{one.metrics.exact_match:.2f}", interval(*one.metrics.exact_match_interval),
                     f"{one.metrics.f1:.2f}", interval(*one.metrics.f1_interval),
                     *shown_difference(one.exact_match), *shown_difference(one.f1),
                     *((f"{one.gained:,}", f"{one.lost:,}") if one.f1 else ("", ""))))
    sample = found[0].metrics
    lines = [table(rows), f"{sample.sample}, scores in percent; {sample.claim}; gain, won and lost: against "
             f"{found[0].name}"]
    lines += [f"{one.name}: {one.metrics.missing} of {one.metrics.count} questions without a prediction count as 0"
              for one in found if one.metrics.missing]
    return "\n".join(lines)


def text_table(texts: Mapping[str, Mapping[str, Mapping[str, TextScore]]]) -> str:
    """Scores of texts, by system, group of prompts and name, as a table for the terminal."""
    rows = [("", *texts)]
    groups = next(iter(texts.values()))
    for group, names in groups.items():
        rows += [(f"{name}, {group}" if len(groups) > 1 else name, *(of[group][name].shown for of in texts.values()))
                 for name in names]
    return table(rows)


def standings_json(found: Sequence[Standing]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def interval(low: float, high: float, sign: str = "") -> str:
    return f"[{low:{sign}.2f}, {high:{sign}.2f}]"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"




def _won(before: Sequence[QuestionScore], after: Sequence[QuestionScore]) -> int:
    return sum(new.em > old.em for old, new in zip(before, after))


def shown_difference(difference: Difference | None) -> tuple[str, str, str]:
    """The difference, its interval, and its p-value."""
    if difference is None:
        return "", "", ""
    return f"{difference.mean:+.2f}", interval(difference.low, difference.high, "+"), p_value(difference.p_value)
