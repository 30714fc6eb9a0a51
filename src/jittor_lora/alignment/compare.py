"""Compares what two sides of an alignment left: `compare` gives an `Alignment`, from which the reports are made."""

from __future__ import annotations

from typing import Mapping, Optional, Sequence

from jittor_lora.alignment.check_forward import check_activations, check_loss
from jittor_lora.alignment.check_start import check_base, check_data, check_initial_adapter
from jittor_lora.alignment.check_training import (
    check_answers,
    check_final_adapter,
    check_gradient_norms,
    check_held_out,
    check_learning_rate,
    check_losses,
)
from jittor_lora.alignment.check_update import check_first_update, check_gradients
from jittor_lora.alignment.record import Record
from jittor_lora.alignment.result import Alignment, Scores
from jittor_lora.alignment.tolerances import TOLERANCES
from jittor_lora.evaluation.scoring import score

NAMES = ("jittor-lora", "PyTorch")

# In the order of `result.CHECKS`; those of `_TRAINING` are told whether training used dropout.
_CHECKS = {
    "data": check_data, "base": check_base, "initial_adapter": check_initial_adapter,
    "activations": check_activations, "loss": check_loss, "gradients": check_gradients,
    "first_update": check_first_update, "learning_rate": check_learning_rate, "losses": check_losses,
    "gradient_norms": check_gradient_norms, "final_adapter": check_final_adapter, "held_out": check_held_out,
    "answers": check_answers,
}
_TRAINING = {"loss", "losses", "gradient_norms", "final_adapter", "held_out", "answers"}


def compare(here: Record, there: Record, *, dropout: bool = False,
            references: Optional[Mapping[str, Sequence[str]]] = None, scoring: str = "squad",
            tolerances: Optional[Mapping[str, float]] = None, names: tuple[str, str] = NAMES) -> Alignment:
    """All checks, in the order of computation.

    Args:
        dropout: whether training used it: each side then draws its own numbers, so that only what comes before is
            compared.
        references: question id → accepted answers, for EM and F1.
        scoring: one of `evaluation.scoring.RULES`.
        tolerances: check → the largest difference that passes, in place of that of `TOLERANCES`.
        names: of the sides, for headings.
    """
    most = {**{key: tolerance.most for key, tolerance in TOLERANCES.items()}, **(tolerances or {})}
    made = (check(here, there, most[key], *((dropout,) if key in _TRAINING else ())) for key, check in _CHECKS.items())
    answers = {name: (text, there.answers[name]) for name, text in here.answers.items()
               if there.answers.get(name, text) != text}
    scores = tuple(_scores(side, references, scoring) for side in (here, there))
    return Alignment(names, (here.facts, there.facts), (here.steps, there.steps), tuple(made), answers,
                     len(here.answers), scores, dropout)


def _scores(side: Record, references: Optional[Mapping[str, Sequence[str]]], scoring: str) -> Optional[Scores]:
    asked = {name: texts for name, texts in (references or {}).items() if name in side.answers and texts}
    if not asked:
        return None
    found = score(asked, side.answers, scoring=scoring)
    return Scores(found.exact_match, found.f1, found.count)
