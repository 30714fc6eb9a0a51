"""Exact match and F1 of SQuAD v2, whose questions may have no answer.

Rajpurkar et al. 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD", in the details of its official
program (`evaluate-v2.0.py`). Answers are normalised as in SQuAD v1.1; an empty prediction is the right one, and the
only one, where there is no answer. Two texts of which nothing is left after normalising have F1 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jittor_lora.evaluation.squad import normalize_answer, token_f1
from jittor_lora.evaluation.squad import pairwise_f1 as pairwise_word_f1


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one of the normalised references, or is empty without any, else 0.0."""
    normalized = normalize_answer(prediction)
    return float(normalized in _normalized(references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The highest token F1, from 0 to 1, of the normalised prediction against any normalised reference."""
    words = normalize_answer(prediction).split()
    return max(token_f1(words, reference.split()) if words and reference else float(not words and not reference)
               for reference in _normalized(references))


def pairwise_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(P, R): `f1` of each prediction against each reference alone; an empty one stands for no answer."""
    empty, without = (np.array([not normalize_answer(text) for text in texts], bool)
                      for texts in (predictions, references))
    return np.where(np.outer(empty, without), 1.0, pairwise_word_f1(predictions, references))


def _normalized(references: Sequence[str]) -> list[str]:
    """Those of which something is left; without any, the empty text."""
    return [text for text in map(normalize_answer, references) if text] or [""]
