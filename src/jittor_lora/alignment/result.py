"""The outcome of comparing two records, from which every form of the report is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence

from jittor_lora.alignment.distance import largest
from jittor_lora.alignment.record import Facts, StepRecord

# The checks in the order of computation: the first that fails is where the cause lies.
CHECKS = ("data", "base", "initial_adapter", "activations", "loss", "gradients", "first_update", "learning_rate",
          "losses", "gradient_norms", "final_adapter", "held_out", "answers")


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        key: one of `CHECKS`.
        found: the largest difference, in the unit of `tolerance`; None if it was not compared.
        tolerance: None where a check only informs.
        where: a step, a module or a tensor: where a difference beyond the tolerance first appears, else the largest.
        reason: the key of a sentence that explains a failure, or why it was not compared, see `words.py`.
        values: for that sentence.
        rows: (name, difference) in the order of computation, for a table.
    """

    key: str
    found: Optional[float]
    tolerance: Optional[float]
    where: str = ""
    reason: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[tuple[str, float], ...] = ()

    @property
    def passed(self) -> Optional[bool]:
        """None if it was not compared or has no tolerance. A difference that is not finite fails."""
        if self.found is None or self.tolerance is None:
            return None
        return self.found <= self.tolerance


def made(key: str, most: Optional[float], rows: Sequence[tuple[str, float]], where: str = "", reason: str = "",
         **values: str) -> Check:
    """The check of this key and tolerance: what was found is the rows' largest difference, infinite if one is NaN."""
    rows = tuple((name, math.inf if math.isnan(value) else value) for name, value in rows)
    return Check(key, largest(rows)[1], most, where, reason, values, rows)


def not_compared(key: str, most: Optional[float], reason: str, **values: str) -> Check:
    return Check(key, None, most, "", reason, values)


@dataclass(frozen=True)
class Scores:
    """EM and F1 in percent on the same questions; None without questions that have answers to compare with."""

    exact_match: float
    f1: float
    count: int


@dataclass(frozen=True)
class Alignment:
    """
    Attributes:
        names: of the two sides, for headings.
        facts, steps, scores: of both; facts of a log alone are None, and so are scores.
        checks: in the order of `CHECKS`.
        answers: id → both texts, of those that differ; `answered`: number of questions.
        dropout: whether training used dropout, so that trajectories can only be compared in distribution.
    """

    names: tuple[str, str]
    facts: tuple[Optional[Facts], Optional[Facts]]
    steps: tuple[tuple[StepRecord, ...], tuple[StepRecord, ...]]
    checks: tuple[Check, ...]
    answers: Mapping[str, tuple[str, str]]
    answered: int
    scores: tuple[Optional[Scores], Optional[Scores]]
    dropout: bool

    @property
    def of_log(self) -> bool:
        """Whether the second side is a log, of which only losses are known."""
        return self.facts[1] is None

    @property
    def first_failure(self) -> Optional[Check]:
        return next((check for check in self.checks if check.passed is False), None)

    @property
    def agrees(self) -> bool:
        return self.first_failure is None
