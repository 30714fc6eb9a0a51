"""Minimum Bayes risk: of several texts, the one that scores highest on average over what the model says.

Goodman 1996, "Parsing Algorithms and Metrics"; Kumar and Byrne 2004, "Minimum Bayes-Risk Decoding for Statistical
Machine Translation"; over samples, Eikema and Aziz 2020, "Is MAP Decoding All You Need?".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jittor_lora.evaluation.scoring import RULES

_SAME = 1e-9  # expected scores that differ by less are equal but for rounding


class Choice(NamedTuple):
    """The number of the chosen text, and its expected F1, 0 to 1."""

    index: int
    expected_f1: float


def highest_expected_f1(texts: Sequence[str], weights: Sequence[float], scoring: str) -> Choice:
    """Of `texts`, the candidate with the highest Σ w(text) F1(candidate, text) / Σ w(text); of equal ones the
    weightiest, then the first.

    Args:
        texts: at least one; candidates and possible references alike.
        weights: of each, in proportion to its probability; not all 0.
        scoring: the rule of F1, see `scoring.RULES`.
    """
    return by_expected_f1(texts, weights, scoring)[0]


def by_expected_f1(texts: Sequence[str], weights: Sequence[float], scoring: str) -> list[Choice]:
    """All of `texts` in the order by which `highest_expected_f1`, with the same arguments, chooses the first."""
    weights = np.asarray(weights, np.float64)
    expected = RULES[scoring].pairwise_f1(texts, texts) @ (weights / weights.sum())
    order = np.argsort(-expected, kind="stable")
    lower = np.cumsum(np.diff(expected[order], prepend=expected[order[0]]) < -_SAME)  # the same number for equal ones
    order = order[np.lexsort((order, -weights[order], lower))]
    return [Choice(int(i), float(expected[i])) for i in order]
