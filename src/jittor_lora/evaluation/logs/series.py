"""Loss curves, as log readers return them and charts draw them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LossSeries:
    """Losses (n,) at increasing steps (n,), both float64; `has_steps` is false if the file named no steps and its
    losses were numbered from 1."""

    steps: np.ndarray
    losses: np.ndarray
    has_steps: bool = True


@dataclass(frozen=True)
class LossCurves:
    """The losses of one run; `validation` is None for a run without.

    `unit` is what the steps count: "optimizer step" in our runs, in other logs whatever `logs.axis` found. `notes` say
    what was left out or assumed. `label_smoothing` is that of the training losses; validation losses have none."""

    train: LossSeries
    validation: LossSeries | None
    unit: str = "optimizer step"
    notes: tuple[str, ...] = ()
    label_smoothing: float = 0.0
