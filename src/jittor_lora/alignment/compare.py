"""Compares what two sides of an alignment left: `compare` gives an `Alignment`, from which the reports are made."""

from __future__ import annotations

from typing import Mapping, Optional, Sequence

from jittor_lora.alignment.check_forward import check_activations, check_loss
from jittor_lora.alignment.check_start import check_base, check_data, check_initial_adapter
from jittor_lora.alignment.check_training import (
    check_final_adapter,
    check_gradient_norms,
    check_held_out,
    check_learning_rate,
    check_losses,
)
from jittor_lora.alignment.check_update import check_first_update, check_gradients
from jittor_lora.alignment.record import Record
from jittor_lora.alignment.result import Alignment, Check, Scores, made, not_compared
from jittor_lora.evaluation.scoring import score

NAMES = ("jittor-lora", "PyTorch")


def compare(here: Record, there: Record, *, dropout: bool = False,
            references: Optional[Mapping[str, Sequence[str]]] = None, scoring: str = "squad",
            names: tuple[str, str] = NAMES) -> Alignment:
    """All checks, in the order of computation.

    Args:
        dropout: whether training used it: each side then draws its own numbers, so that only what comes before is
            compared.
        references: question id → accepted answers, for EM and F1.
        scoring: one of `evaluation.scoring.RULES`.
        names: of the sides, for headings.
    """
    checks = (check_data(here, there), check_base(here, there), check_initial_adapter(here, there),
              check_activations(here, there), check_loss(here, there, dropout), check_gradients(here, there),
              check_first_update(here, there), check_learning_rate(here, there),
              check_losses(here, there, dropout), check_gradient_norms(here, there, dropout),
              check_final_adapter(here, there, dropout), check_held_out(here, there, dropout),
              _check_answers(here, there, dropout))
    answers = {name: (text, there.answers[name]) for name, text in here.answers.items()
               if there.answers.get(name, text) != text}
    scores = tuple(_scores(side, references, scoring) for side in (here, there))
    return Alignment(names, (here.facts, there.facts), (here.steps, there.steps), checks, answers, len(here.answers),
                     scores, dropout)


def _check_answers(here: Record, there: Record, dropout: bool) -> Check:
    if dropout:
        return not_compared("answers", "dropout")
    if not here.answers:
        return not_compared("answers", "no_questions")
    different = [name for name, text in here.answers.items() if there.answers.get(name, text) != text]
    return made("answers", (("answers", float(len(different))),), different[0] if different else "")


def _scores(side: Record, references: Optional[Mapping[str, Sequence[str]]], scoring: str) -> Optional[Scores]:
    asked = {name: texts for name, texts in (references or {}).items() if name in side.answers and texts}
    if not asked:
        return None
    found = score(asked, side.answers, scoring=scoring)
    return Scores(found.exact_match, found.f1, found.count)
