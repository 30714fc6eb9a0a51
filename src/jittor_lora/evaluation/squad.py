"""Exact match and F1 of SQuAD v1.1, as its official evaluation defines them.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1. Details in which
implementations differ:

- Only ASCII punctuation is removed: "10–12" and "10-12" differ.
- Punctuation is removed before articles, and leaves no space: "the-end" becomes "theend".
- An answer that normalises to nothing ("the", "?!") has F1 0 even against an equal reference, although its exact
  match is 1 (SQuAD v2's evaluation and its derivatives give F1 1).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jittor_lora.errors import UserError
from jittor_lora.evaluation.units import Units

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class QuestionScore:
    """Scores of one question, from 0 to 1; `prediction` is None if there was none."""

    id: str
    prediction: str | None
    em: float
    f1: float


@dataclass(frozen=True)
class SquadScore:
    """Means over `count` questions in percent; the `missing` ones, without a prediction, count as 0.

    Attributes:
        units: the units that intervals and tests resample.
    """

    exact_match: float
    f1: float
    count: int
    missing: int
    per_question: list[QuestionScore]
    units: Units


def normalize_answer(text: str) -> str:
    """`text` in lower case, without ASCII punctuation and English articles, its words separated by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one of the normalised references, else 0.0.

    Raises:
        ValueError: there is no reference.
    """
    normalized = normalize_answer(prediction)
    return max(float(normalized == normalize_answer(reference)) for reference in references)


def f1(prediction: str, references: Sequence[str]) -> float:
    """The highest token F1, from 0 to 1, of the normalised prediction against any normalised reference.

    Raises:
        ValueError: there is no reference.
    """
    tokens = normalize_answer(prediction).split()
    return max(_token_f1(tokens, normalize_answer(reference).split()) for reference in references)


def score(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str],
          places: Mapping[str, tuple[str, ...]] | None = None) -> SquadScore:
    """Score `predictions` (id -> text) on every question of `references` (id -> accepted answers).

    Predictions for other ids are ignored, as in the official evaluation.

    Args:
        places: id -> article and paragraph; without them, questions are independent.

    Raises:
        UserError: there are no questions, or some have no reference.
    """
    if not references:
        raise UserError("No questions to score: the data set is empty. Name a file with questions and answers.")
    unanswerable = [question for question, answers in references.items() if not answers]
    if unanswerable:
        shown = ", ".join(unanswerable[:10]) + (" …" if len(unanswerable) > 10 else "")
        raise UserError(f"{len(unanswerable)} of {len(references)} questions have no reference answer, expected at "
                        f"least one per question: {shown}. Use SQuAD v1.1, or leave out the unanswerable questions "
                        "of v2.0.")
    per_question = [_score_question(question, answers, predictions.get(question))
                    for question, answers in references.items()]
    count = len(per_question)
    return SquadScore(exact_match=100.0 * sum(question.em for question in per_question) / count,
                      f1=100.0 * sum(question.f1 for question in per_question) / count,
                      count=count,
                      missing=sum(question.prediction is None for question in per_question),
                      per_question=per_question,
                      units=(Units.independent(count) if places is None
                             else Units.choose([places[question] for question in references])))


def _score_question(question: str, references: Sequence[str], prediction: str | None) -> QuestionScore:
    if prediction is None:
        return QuestionScore(question, None, 0.0, 0.0)
    return QuestionScore(question, prediction, exact_match(prediction, references), f1(prediction, references))


def _token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    common = sum((Counter(prediction) & Counter(reference)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)
