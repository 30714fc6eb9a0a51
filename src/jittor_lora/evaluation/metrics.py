"""metrics.json: EM and F1 in percent with their intervals."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.evaluation.bootstrap import CONFIDENCE, METHOD, RESAMPLES, mean_interval
from jittor_lora.evaluation.predictions import read_json
from jittor_lora.evaluation.scoring import RULES, SquadScore
from jittor_lora.evaluation.units import UNITS, sample_shown
from jittor_lora.files.atomic import write_json


@dataclass(frozen=True)
class Metrics:
    """EM and F1 over `count` questions in percent, with 95 % bootstrap intervals.

    Attributes:
        unit, units: what the intervals resample, and the number of these; see `units.py`.
        scoring: the rule, see `scoring.RULES`.
    """

    exact_match: float
    f1: float
    count: int
    missing: int
    exact_match_interval: tuple[float, float]
    f1_interval: tuple[float, float]
    unit: str
    units: int
    scoring: str = "squad"

    @property
    def sample(self) -> str:
        """In words: 200 questions of 16 articles."""
        return sample_shown(self.count, self.unit, self.units)

    @property
    def claim(self) -> str:
        """In words: what the intervals and tests generalise to."""
        return f"95 % intervals are for new {self.unit}s"


def summarize(score: SquadScore, seed: int = 0) -> Metrics:
    """The means of `score` with bootstrap intervals."""
    def interval(values: list[float]) -> tuple[float, float]:
        estimate = mean_interval(values, score.units, seed=seed)
        return 100 * estimate.low, 100 * estimate.high

    return Metrics(score.exact_match, score.f1, score.count, score.missing,
                   interval([question.em for question in score.per_question]),
                   interval([question.f1 for question in score.per_question]), score.units.name, len(score.units),
                   score.scoring)


def write_metrics(path: str | os.PathLike, metrics: Metrics, **more: object) -> None:
    """Write `metrics`, how the intervals were computed, and the keys in `more`, atomically."""
    write_json(path, {**dataclasses.asdict(metrics),
                      "interval": {"method": METHOD, "confidence": CONFIDENCE, "resamples": RESAMPLES}, **more})


def read_metrics(path: str | os.PathLike) -> Metrics:
    """Read a metrics.json; keys that `Metrics` does not have are ignored.

    `missing` may be absent, and so may `unit`, `units` and `scoring`: files from before these keys resampled questions,
    and were scored by SQuAD v1.1's rule.

    Raises:
        UserError: not a metrics.json; all missing or wrong keys are named.
    """
    path = Path(path)
    values = read_json(path, "the metrics.json of `jittor-lora evaluate`")
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected the metrics.json of `jittor-lora evaluate`, found no JSON object.")
    values = {"missing": 0, "unit": "question", "units": values.get("count"), "scoring": "squad", **values}
    wrong = [f"{key}: expected a percentage from 0 to 100, found {values.get(key)!r}"
             for key in ("exact_match", "f1") if not _is_percentage(values.get(key))]
    wrong += [f"{key}: expected a whole number, found {values.get(key)!r}"
              for key in ("count", "missing", "units") if type(values.get(key)) is not int or values[key] < 0]
    wrong += [f"{key}: expected [low, high] in percent, found {values.get(key)!r}"
              for key in ("exact_match_interval", "f1_interval") if not _is_interval(values.get(key))]
    if values["unit"] not in UNITS:
        wrong.append(f"unit: expected one of {', '.join(UNITS)}, found {values['unit']!r}")
    if values["scoring"] not in RULES:
        wrong.append(f"scoring: expected one of {', '.join(RULES)}, found {values['scoring']!r}")
    if wrong:
        raise UserError("\n  ".join([f"{path}: not the metrics.json of `jittor-lora evaluate`:", *wrong])
                        + "\nRun `jittor-lora evaluate` again, or name its metrics.json.")
    return Metrics(**{field.name: tuple(values[field.name]) if field.name.endswith("_interval") else values[field.name]
                      for field in dataclasses.fields(Metrics)})


def _is_percentage(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_percentage, value)) and value[0] <= value[1]
