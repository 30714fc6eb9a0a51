"""Questions without an answer: the threshold on how sure a system is of that, and the figures of SQuAD v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jittor_lora.evaluation.scoring import QuestionScore, SquadScore


def thresholded(answers: Mapping[str, str], null_odds: Mapping[str, float], threshold: float) -> dict[str, str]:
    """The answers (id -> text), empty where the odds of no answer exceed the threshold."""
    return {question: "" if null_odds[question] > threshold else text for question, text in answers.items()}


def best_threshold(scores: Sequence[QuestionScore], field: str, null_odds: Mapping[str, float]) -> tuple[float, float]:
    """(the highest mean score in percent that any threshold gives, that threshold).

    As in the official program (`evaluate-v2.0.py`): questions are answered one by one, from the lowest odds of no
    answer; the threshold is the odds of the last one answered, and 0 if none is. Questions with equal odds come in the
    order of `null_odds`, although no threshold can part them.

    Args:
        scores: of answers given regardless of the odds.
        field: "em" or "f1".
        null_odds: question id -> how sure the system is that there is no answer, on any scale.
    """
    by_id = {question.id: question for question in scores if question.prediction is not None}
    total = best = float(sum(not question.answerable for question in scores))
    threshold = 0.0
    for name in sorted(null_odds, key=null_odds.__getitem__):
        question = by_id.get(name)
        if question is None:
            continue
        if question.answerable:
            total += getattr(question, field)
        elif question.prediction:
            total -= 1
        if total > best:
            best, threshold = total, null_odds[name]
    return 100.0 * best / len(by_id), threshold


def figures(score: SquadScore, raw: SquadScore | None = None, null_odds: Mapping[str, float] | None = None
            ) -> dict[str, Any]:
    """The figures of `evaluate-v2.0.py`, under its names: all questions, those with an answer (HasAns), those without
    (NoAns), and, with `raw`, the best threshold for each score.

    Args:
        score: of the final answers.
        raw: of the answers before the threshold.
        null_odds: see `best_threshold`.
    """
    found: dict[str, Any] = _means("", score.per_question)
    for name, answerable in (("HasAns_", True), ("NoAns_", False)):
        found.update(_means(name, [one for one in score.per_question if one.answerable == answerable]))
    if raw is not None and null_odds:
        for name, field in (("exact", "em"), ("f1", "f1")):
            found[f"best_{name}"], found[f"best_{name}_thresh"] = best_threshold(raw.per_question, field, null_odds)
    return found


def figures_line(found: Mapping[str, Any]) -> str:
    """The figures in one sentence for the screen."""
    parts = [f"{title} EM {found[f'{name}_exact']:.2f}, F1 {found[f'{name}_f1']:.2f} ({found[f'{name}_total']:,})"
             for name, title in (("HasAns", "with an answer"), ("NoAns", "without")) if f"{name}_total" in found]
    if "best_f1" in found:
        parts.append(f"best F1 {found['best_f1']:.2f} at threshold {found['best_f1_thresh']:.4g}")
    return "; ".join(parts)


def _means(prefix: str, scores: Sequence[QuestionScore]) -> dict[str, Any]:
    if not scores:
        return {}
    return {f"{prefix}exact": 100.0 * sum(one.em for one in scores) / len(scores),
            f"{prefix}f1": 100.0 * sum(one.f1 for one in scores) / len(scores), f"{prefix}total": len(scores)}
