"""Reads loss logs: a run folder of ours, and text logs as other training scripts write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.inputs import load_json, read_input

# No repetition of these expressions is without a limit: they are searched for at every place of a line, and would take
# time that grows with a power of its length.
LONGEST_LINE = 2_000  # characters
_NUMBER = r"[-+]?(?:\d{1,40}(?:\.\d{0,40})?(?:e[-+]?\d{1,5})?|\.\d{1,40}(?:e[-+]?\d{1,5})?|nan|inf(?:inity)?)"
_ONE_NUMBER = re.compile(_NUMBER)
# jt.Var([3.2],dtype=float32), tensor(3.2, device='cuda:0'), np.float32(3.2), array([3.2]), [3.2]
_TENSOR = re.compile(rf"(?:[a-z_][\w.]{{0,30}}\s{{0,4}})?[(\[]{{1,8}}\s{{0,4}}({_NUMBER})\s{{0,4}}[)\]]{{0,8}}\s{{0,4}}"
                     r"(?:,\s{0,4}[a-z_]{1,30}\s{0,4}=[^\[\]]{0,200})?[)\]]{0,8}")
# "loss: 3.2", "Train Loss = 3.2", "val_loss 3.2"; the name in front tells training from validation
_NAMED_LOSS = re.compile(r"(?:(train|val|dev|test|eval)\w{0,30}[\s_./-]{0,4})?(?<![a-z])(?:loss|损失)\w{0,30}[\"']?"
                         rf"\s{{0,4}}[:=：]?\s{{0,4}}(?:[a-z_][\w.]{{0,20}})?[\[(]{{0,8}}({_NUMBER})(?![\w.])")
_NAMED_STEP = re.compile(r"(?<![a-z])(?:global[\s_]{0,4})?(?:steps?|iter(?:ation)?s?|batch|步)[\"']?\s{0,4}[:=：#]?"
                         r"\s{0,4}(\d{1,20})(?![\w.])")
_SHOWN_OFFENDERS = 10


@dataclass(frozen=True)
class LossSeries:
    """Losses (n,) at optimizer steps (n,), both float64; `has_steps` tells whether the file named the steps or lines
    were counted from 1. `notes` say what was left out or assumed."""

    steps: np.ndarray
    losses: np.ndarray
    has_steps: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LossCurves:
    """The losses of one run; a run without validation has None."""

    train: LossSeries
    validation: LossSeries | None

    @property
    def notes(self) -> tuple[str, ...]:
        return self.train.notes + (self.validation.notes if self.validation else ())


def read_run_losses(folder: str | os.PathLike) -> LossCurves:
    """Losses of a run folder: from metrics.jsonl, or from train_loss.txt and val_loss.txt where there is none.

    Raises:
        UserError: neither is there, or a line cannot be understood.
    """
    folder = Path(folder)
    if (folder / "metrics.jsonl").is_file():
        return _read_metrics_lines(folder / "metrics.jsonl")
    if not (folder / "train_loss.txt").is_file():
        raise UserError(f"{folder}: expected a run folder with metrics.jsonl or train_loss.txt, found neither. "
                        "Name the output folder of `jittor-lora train`, or a log with --train-loss FILE.")
    validation = folder / "val_loss.txt"
    return read_loss_files(folder / "train_loss.txt", validation if validation.is_file() else None)


def read_loss_files(train: str | os.PathLike, validation: str | os.PathLike | None = None) -> LossCurves:
    """Losses of two text logs. Validation losses without steps are spread evenly over the training steps, the last
    one at the last step; a note says so.

    Raises:
        UserError: a file cannot be read or holds no number, or a line cannot be understood.
    """
    curves = LossCurves(read_loss_file(train, "train"),
                        None if validation is None else read_loss_file(validation, "val"))
    if curves.validation is None or curves.validation.has_steps:
        return curves
    # The steps are the lines' numbers, lines left out counted too.
    series, lines = curves.validation, curves.validation.steps.max()
    spread = LossSeries(series.steps * (curves.train.steps.max() / lines), series.losses, True, series.notes + (
        f"{validation}: names no steps; its {len(series.losses)} losses are spread evenly over the training steps",))
    return LossCurves(curves.train, spread)


def read_loss_file(path: str | os.PathLike, kind: str = "train") -> LossSeries:
    """Losses of a text log, one a line. Understood are a number alone, `step,loss` columns (comma, tab or blanks, with
    or without a heading), `Epoch 1, Step 10, Loss: 3.21`, and printed tensors such as `jt.Var([3.2],dtype=float32)`.

    Blank lines and lines that start with # are skipped; NaN and infinite losses are left out with a note. Where steps
    are not named, or do not rise (a count that starts anew each epoch), lines are counted from 1.

    Args:
        kind: "train" or "val", which loss to take from lines that name both.

    Raises:
        UserError: the file cannot be read or holds no number, or lines cannot be understood (their numbers are given).
    """
    path = Path(path)
    steps: list[float | None] = []
    losses: list[float] = []
    offenders: list[tuple[int, str]] = []
    columns = None
    for number, line in _lines(path):
        if columns is None and not losses:
            columns = _heading(line, kind)
            if columns is not None:
                continue
        parsed = _parse_line(line, columns, kind)
        if parsed is None:
            offenders.append((number, line))
        else:
            steps.append(parsed[0])
            losses.append(parsed[1])
    if offenders:
        shown = [f"line {number}: {line[:80]!r}" for number, line in offenders[:_SHOWN_OFFENDERS]]
        more = len(offenders) - len(shown)
        raise UserError("\n  ".join([f"{path}: {len(offenders)} lines hold no loss that can be made out:", *shown,
                                     *([f"and {more} more"] if more > 0 else [])])
                        + "\nExpected one number a line, `step,loss` columns, or lines like `Step 10, Loss: 3.21`.")
    return _series(path, steps, losses)


def _read_metrics_lines(path: Path) -> LossCurves:
    rows: dict[str, list[tuple[float, float]]] = {"train_loss": [], "val_loss": []}
    offenders = []
    lines = list(_lines(path))
    whole = read_input(path).endswith(b"\n")
    for number, line in lines:
        try:
            row = load_json(line)
            step = float(row["step"])
            for key, values in rows.items():
                if key in row:
                    # null stands for a loss that was not finite
                    values.append((step, float("nan") if row[key] is None else float(row[key])))
        except (ValueError, TypeError, KeyError):
            if number != lines[-1][0] or whole:  # a run that is still going may be writing its last line
                offenders.append(f"line {number}: {line[:80]!r}")
    if offenders:
        raise UserError("\n  ".join([f"{path}: {len(offenders)} lines are not a JSON object with a step and a loss:",
                                     *offenders[:_SHOWN_OFFENDERS]]) + "\nPut the file of the run back.")
    train, validation = (_series(path, *map(list, zip(*values))) if values else None for values in rows.values())
    if train is None:
        raise UserError(f"{path}: holds no train_loss. The run has not finished its first step.")
    return LossCurves(train, validation)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, stripped line) of the lines that are neither blank nor comments."""
    try:
        text = read_input(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} at position "
                        f"{error.start}. Name a text log, or save it as UTF-8.") from error
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, line


def _heading(line: str, kind: str) -> tuple[int | None, int] | None:
    """(column of the step, column of the loss) if `line` is a heading of names."""
    names = [name.strip().strip("\"'").lower() for name in _split(line)]
    if any(character.isdigit() for character in line):
        return None
    losses = [index for index, name in enumerate(names) if "loss" in name]
    losses = [index for index in losses if kind in names[index]] or losses
    if len(losses) != 1:
        return None
    steps = [index for index, name in enumerate(names) if name in ("step", "steps", "global_step", "iteration", "iter")]
    return (steps[0] if steps else None), losses[0]


def _split(line: str) -> list[str]:
    return line.split(",") if "," in line else line.split()


def _parse_line(line: str, columns: tuple[int | None, int] | None, kind: str) -> tuple[float | None, float] | None:
    """(step if named, loss) of a line, None if it cannot be made out."""
    if len(line) > LONGEST_LINE:
        return None
    line = line.lower()
    cells = [cell.strip() for cell in _split(line)]
    if columns is not None and len(cells) > max(columns[0] or 0, columns[1]):
        step, loss = None if columns[0] is None else cells[columns[0]], cells[columns[1]]
        if _ONE_NUMBER.fullmatch(loss) and (step is None or _ONE_NUMBER.fullmatch(step)):
            return None if step is None else float(step), float(loss)
    if len(cells) <= 2 and all(_ONE_NUMBER.fullmatch(cell) for cell in cells):
        return (None if len(cells) == 1 else float(cells[0])), float(cells[-1])
    tensor = _TENSOR.fullmatch(line)
    if tensor:
        return None, float(tensor.group(1))
    named = _NAMED_LOSS.findall(line)
    chosen = ([loss for name, loss in named if name and (name == "train") == (kind == "train")]
              or [loss for name, loss in named if not name] or [loss for _, loss in named])
    if not chosen:
        return None
    step = _NAMED_STEP.search(line)
    return (float(step.group(1)) if step else None), float(chosen[0])


def _series(path: Path, steps: list[float | None], losses: list[float]) -> LossSeries:
    values = np.array(losses, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise UserError(f"{path}: expected losses, found " + ("no line with a number." if not losses else
                        f"only losses that are not finite ({len(losses)})."))
    notes = []
    if not finite.all():
        notes.append(f"{path}: {int((~finite).sum())} of {len(values)} losses are not finite (NaN or infinite) and "
                     "left out")
    has_steps = None not in steps
    at = np.array(steps, dtype=np.float64) if has_steps else np.arange(1, len(values) + 1, dtype=np.float64)
    if has_steps and not (np.isfinite(at).all() and (np.diff(at) > 0).all()):
        notes.append(f"{path}: its steps do not rise from line to line; lines are counted instead")
        has_steps, at = False, np.arange(1, len(values) + 1, dtype=np.float64)
    return LossSeries(at[finite], values[finite], has_steps, tuple(notes))
