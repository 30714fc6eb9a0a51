"""The plain values of a checkpoint, besides its arrays: written, checked and read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping

from jittor_lora.errors import UserError
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.run_cost import cost_of
from jittor_lora.training.progress import Progress

_COUNTS = ("step", "best_step", "validations_since_best", "skipped", "skipped_in_a_row")
_NEEDED = {"step", "best_loss"}
_LOSSES = ("train_loss", "validation_loss", "best_loss")
_TEXTS = ("data", "dev", "base", "precision")
MOST_STEPS = 10**12
MOST_THREADS = 4096


def state_of(progress: Progress) -> dict[str, Any]:
    """`progress` as JSON, which has neither infinity nor NaN."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in asdict(progress).items()}


def progress_of(values: Mapping[str, Any]) -> Progress:
    """The inverse of `state_of`."""
    return Progress(**{**values, "best_loss": math.inf if values["best_loss"] is None else values["best_loss"]})


def check_values(path: Path, values: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: a run does not write such values; all that are wrong are listed.
    """
    wrong = []
    for name in _TEXTS:
        if not isinstance(values.get(name), str):
            wrong.append(f"{name}: expected text")
    if not _is_count(values.get("threads"), MOST_THREADS) or not values["threads"]:
        wrong.append(f"threads: expected a whole number from 1 to {MOST_THREADS:,}")
    for name in ("settings", "system", "progress"):
        if not isinstance(values.get(name), dict):
            wrong.append(f"{name}: expected an object")
    progress = values.get("progress")
    if isinstance(progress, dict):
        fields = {field.name for field in dataclasses.fields(Progress)}
        if not _NEEDED <= progress.keys() <= fields:
            wrong.append(f"progress: expected {', '.join(sorted(fields))}")
        wrong += [f"progress: {name}: expected a whole number from 0" for name in _COUNTS
                  if not _is_count(progress.get(name, 0), MOST_STEPS)]
        wrong += [f"progress: {name}: expected a number or null" for name in _LOSSES
                  if progress.get(name) is not None and type(progress[name]) not in (int, float)]
    if "cost" in values and cost_of(values["cost"]) is None:
        wrong.append("cost: expected seconds and peak_memory_mib, numbers from 0")
    if wrong:
        raise UserError("\n  ".join([f"{path}: not the checkpoint of a training run:", *wrong]) +
                        "\nRemove it to resume from the one before.")


def settings_of(path: Path, values: Mapping[str, Any]) -> RunConfig:
    """The settings that the run was started with.

    Raises:
        UserError: they are not valid.
    """
    try:
        return RunConfig(**values["settings"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
