"""What a training run says at its start and at its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.check import duplicates, notes
from jittor_lora.data.examples import Data
from jittor_lora.data.length_report import LengthReport
from jittor_lora.data.report import describe_data, turn_ends
from jittor_lora.session import Session
from jittor_lora.tasks.methods import Method
from jittor_lora.tasks.run_cost import Cost
from jittor_lora.tasks.run_folder import BEST
from jittor_lora.training.progress import Outcome


def introduction(session: Session, method: Method, train: tuple[Data, LengthReport],
                 dev: tuple[Data, LengthReport] | None, chat: ChatEncoder | None, total_steps: int) -> list[str]:
    """Data, base, and what is trained.

    Args:
        train, dev: training and validation data, and what became of their examples.
        chat: encodes conversations, if there are any.
    """
    sets = {"Training data": train, **({"Validation data": dev} if dev else {})}
    lines = [f"{data.path}: {describe_data(data)}" for data, _ in sets.values()]
    kept = "" if session.checkpoint.precision == "auto" else f", in {session.checkpoint.precision}"
    lines += [f"Base: {session.base.description}{kept}", f"Tokenizer: {session.tokenizer.origin}", *method.lines()]
    if chat is not None:
        lines.append("; ".join(turn_ends(chat, session.tokenizer)))
    lines += [f"{name}: {line}" for name, (_, report) in sets.items() for line in report.lines()]
    compiles = " The first one takes longer where Jittor still compiles operators."
    lines.append(f"Steps: {total_steps:,}.{compiles if method.depends_on_threads() else ''}")
    tokenizer = session.tokenizer
    for data, report in sets.values():
        lines += [*notes(data, report, tokenizer.special, tokenizer.special_tokens), *duplicates(data)]
    return lines


def summarize(outcome: Outcome, session: Session, method: Method, report: LengthReport,
              cost: Cost) -> dict[str, Any]:
    """The values of summary.json; a run that a signal asked to end also has that signal."""
    progress = outcome.progress
    validated = math.isfinite(progress.best_loss)
    return {
        "ended": outcome.reason,
        "base": session.base.name,
        "steps": progress.step,
        "total_steps": outcome.total_steps,
        "train_loss": progress.train_loss,
        "validation_loss": progress.validation_loss,
        "best_validation_loss": progress.best_loss if validated else None,
        "best_step": progress.best_step if validated else None,
        "skipped_steps": progress.skipped,
        "trainable_parameters": method.trainable.count(),
        "adapter": method.summary(),
        "training_examples": report.kept,
        **cost.values(),
        **({"signal": outcome.signal} if outcome.signal is not None else {}),
    }


def conclusion(outcome: Outcome, folder: Path, product: Path) -> str:
    """The last line on the screen.

    Args:
        folder: of the run.
        product: folder of the adapter or model.
    """
    progress = outcome.progress
    if outcome.reason == "interrupted":
        return f"Interrupted after step {progress.step} and saved."
    text = f"Done after step {progress.step}{' (stopped early)' if outcome.reason == 'early stop' else ''}: {product}"
    if progress.skipped:
        text += f"; {progress.skipped} steps were left out because their numbers were not finite, see run.log"
    if math.isfinite(progress.best_loss) and progress.best_step < progress.step:
        text += f"; the lowest validation loss was at step {progress.best_step}: {folder / BEST}"
    return text
