"""The losses of another program's log beside those of a run of ours; nothing else is known of that program."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Sequence

from jittor_lora.alignment.record import Facts, StepRecord
from jittor_lora.alignment.result import Alignment
from jittor_lora.evaluation.loss_logs import read_loss_files

_COUNTS_STEPS = ("optimizer step", "step", "iteration", "batch", "order")


def overlay(steps: Sequence[StepRecord], facts: Facts, log: str | os.PathLike,
            name: str = "jittor-lora") -> tuple[Alignment, tuple[str, ...]]:
    """An alignment without checks, and notes on what was assumed in reading the log.

    If the log counts something else than steps, its losses are spread evenly over the run.

    Raises:
        UserError: the log cannot be read or has no losses.
    """
    log = Path(log)
    curves = read_loss_files(log)
    train, notes = curves.train, curves.notes
    places = train.steps
    if curves.unit not in _COUNTS_STEPS:
        places = places * (steps[-1].step / max(places.max(), 1e-300))
        notes += (f"{log}: names the {curves.unit} of each loss, not its step; its {len(places):,} losses are spread "
                  "evenly over the run",)
    theirs = {max(1, round(float(at))): float(loss) for at, loss in zip(places, train.losses)}
    unknown = math.nan
    records = tuple(StepRecord(step, loss, unknown, unknown, 0, 0, 0.0) for step, loss in theirs.items())
    return Alignment((name, log.name), (facts, None), (tuple(steps), records), (), {}, 0, (None, None), False), notes
