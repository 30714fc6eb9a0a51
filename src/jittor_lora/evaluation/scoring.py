"""The rules by which answers are scored, which of them a data set asks for, and scores by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jittor_lora.data.examples import Data
from jittor_lora.data.squad import SquadData
from jittor_lora.data.words import is_chinese
from jittor_lora.errors import UserError
from jittor_lora.evaluation import cmrc, squad, squad_v2
from jittor_lora.evaluation.units import Units

AUTO = "auto"
Comparison = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Rule:
    """How a prediction is compared with the accepted answers of its question; both scores are from 0 to 1.

    Attributes:
        title: what it is, in words.
        pairwise_f1: (P, R), the `f1` of each of some predictions against each of some references alone.
        no_answers: whether questions may have no answer.
    """

    title: str
    exact_match: Comparison
    f1: Comparison
    pairwise_f1: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    no_answers: bool = True


RULES: dict[str, Rule] = {
    "squad": Rule("SQuAD v1.1, English words", squad.exact_match, squad.f1, squad.pairwise_f1, no_answers=False),
    "squad-v2": Rule("SQuAD v2, English words, with questions that have no answer", squad_v2.exact_match, squad_v2.f1,
                     squad_v2.pairwise_f1),
    "cmrc": Rule("CMRC 2018 and DRCD, Chinese characters and words", cmrc.exact_match, cmrc.f1, cmrc.pairwise_f1),
}


@dataclass(frozen=True)
class QuestionScore:
    """Scores of one question, from 0 to 1; `prediction` is None if there was none, `answerable` whether there is an
    answer to find."""

    id: str
    prediction: str | None
    em: float
    f1: float
    answerable: bool = True


@dataclass(frozen=True)
class SquadScore:
    """Means over `count` questions in percent; the `missing` ones, without a prediction, count as 0.

    Attributes:
        units: the units that intervals and tests resample.
        scoring: the rule, one of `RULES`.
    """

    exact_match: float
    f1: float
    count: int
    missing: int
    per_question: list[QuestionScore]
    units: Units
    scoring: str = "squad"


def rule_for(data: Data) -> str:
    """The name of the rule that a data set asks for.

    Chinese if most words of the reference answers, or of the contexts, are Chinese characters; otherwise English, in
    the form of SQuAD v2 if the data set may have questions without an answer.
    """
    answers = (text for texts in data.references().values() for text in texts)
    contexts = (paragraph.context for paragraph in data.paragraphs) if isinstance(data, SquadData) else ()
    if is_chinese(answers) or is_chinese(contexts):
        return "cmrc"
    return "squad-v2" if isinstance(data, SquadData) and data.no_answers else "squad"


def rule_of_text(context: str) -> str:
    """The name of the rule for answers about one text."""
    return "cmrc" if is_chinese([context]) else "squad"


def chosen_rule(scoring: str, data: Data) -> str:
    """The name of the rule for a setting, "auto" or a name.

    Raises:
        UserError: it cannot score the questions of these data that have no answer.
    """
    name = rule_for(data) if scoring == AUTO else scoring
    if not RULES[name].no_answers:
        _refuse_unanswerable(data.references())
    return name


def rule_line(scoring: str, name: str) -> str:
    """A sentence for the screen on the rule `name`, chosen by the setting `scoring`."""
    how = "chosen by the data; --scoring sets another" if scoring == AUTO else "as given"
    return f"Scores: {RULES[name].title} ({name}, {how})"


def score(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str],
          places: Mapping[str, tuple[str, ...]] | None = None, scoring: str = "squad") -> SquadScore:
    """Score `predictions` (id -> text) on every question of `references` (id -> accepted answers).

    Predictions for other ids are ignored, as in the official evaluations. A question without a prediction counts as 0
    in all rules; the official program of SQuAD v2 gives no scores then.

    Args:
        places: id -> article and paragraph; without them, questions are independent.
        scoring: the name of the rule.

    Raises:
        UserError: there are no questions, or some have no reference and the rule does not allow it.
    """
    if not references:
        raise UserError("No questions to score: the data set is empty. Name a file with questions and answers.")
    rule = RULES[scoring]
    if not rule.no_answers:
        _refuse_unanswerable(references)
    per_question = [_score_question(question, answers, predictions.get(question), rule)
                    for question, answers in references.items()]
    count = len(per_question)
    return SquadScore(exact_match=100.0 * sum(question.em for question in per_question) / count,
                      f1=100.0 * sum(question.f1 for question in per_question) / count,
                      count=count,
                      missing=sum(question.prediction is None for question in per_question),
                      per_question=per_question,
                      units=(Units.independent(count) if places is None
                             else Units.choose([places[question] for question in references])),
                      scoring=scoring)


def same_rule(rules: Mapping[str, str]) -> None:
    """Check the rules by which systems were scored, by the systems' names.

    Raises:
        UserError: they differ.
    """
    if len(set(rules.values())) > 1:
        found = ", ".join(f"{name} by {rule}" for name, rule in rules.items())
        raise UserError(f"scores by different rules cannot be compared: {found}. Score all by one with --scoring.")


def _refuse_unanswerable(references: Mapping[str, Sequence[str]]) -> None:
    unanswerable = [question for question, answers in references.items() if not answers]
    if unanswerable:
        shown = ", ".join(unanswerable[:10]) + (" …" if len(unanswerable) > 10 else "")
        raise UserError(f"{len(unanswerable)} of {len(references)} questions have no reference answer, expected at "
                        f"least one per question: {shown}. Score them by SQuAD v2's rule (--scoring squad-v2), or "
                        "leave them out.")


def _score_question(question: str, references: Sequence[str], prediction: str | None, rule: Rule) -> QuestionScore:
    if prediction is None:
        return QuestionScore(question, None, 0.0, 0.0, bool(references))
    return QuestionScore(question, prediction, rule.exact_match(prediction, references),
                         rule.f1(prediction, references), bool(references))
