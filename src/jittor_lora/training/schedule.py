"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, total_steps: int, peak: float, warmup_steps: int, schedule: str,
                  min_ratio: float = 0.0) -> float:
    """The learning rate of optimiser step `step`, counted from 0.

    It rises linearly from 0 to `peak` in `warmup_steps` (so with warmup, step 0 changes nothing), then falls to
    `min_ratio * peak` at `total_steps`, or stays. With `min_ratio` 0 it equals transformers'
    `get_{linear,cosine,constant}_schedule_with_warmup`, stepped once after each optimiser step.

    Args:
        step: 0 to total_steps - 1 in a run; from `total_steps` on the rate keeps its final value.
        schedule: "linear", "cosine" (half a wave) or "constant".

    Raises:
        ValueError: unknown schedule, or a negative step.
    """
    if step < 0:
        raise ValueError(f"step {step} is negative")
    if schedule not in ("linear", "cosine", "constant"):
        raise ValueError(f"unknown schedule {schedule!r}: expected linear, cosine or constant")
    if step < warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    remaining = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (min_ratio + (1.0 - min_ratio) * remaining)
