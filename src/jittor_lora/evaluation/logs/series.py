"""Losses at their places: what readers of logs return and charts draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LossSeries:
    """Losses (n,) at places (n,) that rise, both float64; `has_steps` tells whether the file named the places or its
    losses were counted from 1."""

    steps: np.ndarray
    losses: np.ndarray
    has_steps: bool = True


@dataclass(frozen=True)
class LossCurves:
    """The losses of one run; a run without validation has None.

    `unit` is what the places count: "optimizer step" in runs of ours, in logs of others what `logs.axis` found. `notes`
    say what was left out or assumed."""

    train: LossSeries
    validation: LossSeries | None
    unit: str = "optimizer step"
    notes: tuple[str, ...] = ()
