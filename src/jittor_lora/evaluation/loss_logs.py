"""Reads the losses of a run: strictly from a run folder of ours, leniently from other training scripts' logs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jittor_lora.data.report import counted
from jittor_lora.errors import UserError
from jittor_lora.evaluation.logs.axis import ORDER
from jittor_lora.evaluation.logs.curves import Log, read_log
from jittor_lora.evaluation.logs.names import TRAIN, VALIDATION
from jittor_lora.evaluation.logs.series import LossCurves, LossSeries
from jittor_lora.files.untrusted import load_json, read_input
from jittor_lora.settings import recipe

_SHOWN_OFFENDERS = 10


def read_run_losses(folder: str | os.PathLike) -> LossCurves:
    """Losses of a run folder: from metrics.jsonl, or without one from train_loss.txt and val_loss.txt.

    Raises:
        UserError: neither exists, or a line of metrics.jsonl is malformed.
    """
    folder = Path(folder)
    if (folder / "metrics.jsonl").is_file():
        return replace(_read_metrics_lines(folder / "metrics.jsonl"), label_smoothing=_label_smoothing(folder))
    if not (folder / "train_loss.txt").is_file():
        raise UserError(f"{folder}: expected a run folder with metrics.jsonl or train_loss.txt, found neither. "
                        "Name the output folder of `jittor-lora train`, or a log with --train-loss FILE.")
    validation = folder / "val_loss.txt"
    curves = read_loss_files(folder / "train_loss.txt", validation if validation.is_file() else None)
    return replace(curves, label_smoothing=_label_smoothing(folder))


def _label_smoothing(folder: Path) -> float:
    """That of a run, 0 where its settings do not say."""
    try:
        value = float(recipe.read(folder / "config.yaml")[0]["label_smoothing"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0.0
    return value if 0 <= value < 1 else 0.0


def read_loss_files(train: str | os.PathLike, validation: str | os.PathLike | None = None) -> LossCurves:
    """Losses of one log that may include validation losses, or of two, one for each.

    If the validation log names no steps, or other units than the training log, its losses are spread evenly over the
    training, the last one at its end; a note says so.

    Raises:
        UserError: a file cannot be read or has no such losses; the message says what it has.
    """
    log = read_log(Path(train), TRAIN)
    if validation is None:
        return LossCurves(log.train, log.validation, log.unit, log.notes)
    other = read_log(Path(validation), VALIDATION)
    notes = log.notes
    if log.validation is not None:
        count = len(log.validation.losses)
        notes += (f"{train}: its own " + ("validation loss is left out" if count == 1
                                          else f"{count:,} validation losses are left out"),)
    series, spread = _beside(log, other, Path(validation))
    return LossCurves(log.train, series, log.unit, notes + other.notes + spread)


def _beside(log: Log, other: Log, path: Path) -> tuple[LossSeries, tuple[str, ...]]:
    """The validation losses of `other`, on the axis of `log`."""
    series = other.train if other.validation is None else other.validation
    if series.has_steps and log.unit in (other.unit, ORDER):
        return series, ()
    found = "names no steps" if other.unit == ORDER else f"names the {other.unit} of each loss, not its {log.unit}"
    # Losses that were left out still count: the steps of an unnumbered log are its line numbers.
    steps = series.steps * (log.train.steps.max() / max(series.steps.max(), 1e-300))
    return LossSeries(steps, series.losses), (f"{path}: {found}; its {len(series.losses):,} losses are spread evenly "
                                              "over the training",)


def _read_metrics_lines(path: Path) -> LossCurves:
    rows: dict[str, list[tuple[float, float]]] = {"train_loss": [], "val_loss": []}
    offenders = []
    content = read_input(path)
    try:
        lines = [(number, line) for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1)
                 if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} at position "
                        f"{error.start}. Restore the run's original file.") from error
    for number, line in lines:
        try:
            row = load_json(line)
            step = float(row["step"])
            for key, values in rows.items():
                if key in row:
                    # null is a loss that was not finite
                    values.append((step, float("nan") if row[key] is None else float(row[key])))
        except (ValueError, TypeError, KeyError):
            if number != lines[-1][0] or content.endswith(b"\n"):  # a run in progress may be writing its last line
                offenders.append(f"line {number}: {line[:80]!r}")
    if offenders:
        raise UserError("\n  ".join([f"{path}: expected a JSON object with a step and a loss in each line, found "
                                     f"{counted(len(offenders), 'other line')}:", *offenders[:_SHOWN_OFFENDERS]])
                        + "\nRestore the run's original file.")
    notes: list[str] = []
    train, validation = (_series(path, values, notes) if values else None for values in rows.values())
    if train is None:
        raise UserError(f"{path}: has no train_loss. The run has not finished its first step.")
    return LossCurves(train, validation, notes=tuple(notes))


def _series(path: Path, values: Sequence[tuple[float, float]], notes: list[str]) -> LossSeries:
    steps, losses = np.array(values, dtype=np.float64).T
    finite = np.isfinite(losses)
    if not finite.any():
        raise UserError(f"{path}: expected losses, found only losses that are not finite ({len(losses)}).")
    if not finite.all():
        notes.append(f"{path}: {int((~finite).sum())} of {len(losses)} losses are not finite (NaN or infinite) and "
                     "are left out")
    has_steps = bool(np.isfinite(steps).all() and (np.diff(steps) > 0).all())
    if not has_steps:
        notes.append(f"{path}: its steps do not increase from line to line; losses are numbered by line instead")
        steps = np.arange(1, len(losses) + 1, dtype=np.float64)
    return LossSeries(steps[finite], losses[finite], has_steps)
