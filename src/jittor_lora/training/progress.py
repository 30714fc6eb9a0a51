"""Where a run stands, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run stands: everything in a checkpoint besides the parameters and the optimiser's moments.

    Attributes:
        train_loss: of the last step.
        validation_loss: the latest.
        best_loss, best_step: the lowest validation loss so far, and its step.
        skipped: steps left out because their loss or gradient was not finite.
        skipped_in_a_row: how many of these came directly before the next step.
    """

    step: int = 0
    train_loss: float | None = None
    validation_loss: float | None = None
    best_loss: float = math.inf
    best_step: int = 0
    validations_since_best: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    @property
    def updates(self) -> int:
        """Steps that changed the parameters."""
        return self.step - self.skipped

    def note_step(self, loss: float, skipped: bool) -> None:
        """One more step is done, with an update or left out."""
        self.step += 1
        self.train_loss = loss
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def note_validation(self, loss: float) -> bool:
        """The validation loss after the last step; is it the lowest so far?"""
        self.validation_loss = loss
        if math.isfinite(loss) and loss < self.best_loss:
            self.best_loss, self.best_step, self.validations_since_best = loss, self.step, 0
            return True
        self.validations_since_best += 1
        return False

    def stalled(self, patience: int | None) -> bool:
        """Has the validation loss not fallen for `patience` validations?"""
        return patience is not None and self.validations_since_best >= patience


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `reason` is "finished", "early stop" or "interrupted".

    `signal` is the one that asked it to end, if any did. One that came in the last step changes nothing here, but
    whoever called should not go on.
    """

    progress: Progress
    reason: str
    total_steps: int
    signal: int | None = None
