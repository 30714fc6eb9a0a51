"""The logs of a training run: loss files, metrics, TensorBoard scalars, a text log, and progress on the screen.

    train_loss.txt   one number per line; line s is optimiser step s
    val_loss.txt     one number per line, one line per validation
    metrics.jsonl    {"step": s, "train_loss": …, …} and {"step": s, "val_loss": …, …}
    run.log          system information and events, with times
    config.yaml      the resolved settings
    summary.json     written at the end

Numbers are written with Python's `repr`, so they read back as exactly the same floats. Numbers that are not finite are
nan or inf in the text files and null in JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import yaml

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write, sync, write_json
from jittor_lora.files.untrusted import load_json, read_input, unreadable
from jittor_lora.training.progress_bar import ProgressBar
from jittor_lora.training.reports import Reports, Run


class RunLog:
    """The log of one run in `folder`. Every step reaches the operating system before `step` returns.

    A run that resumes from the checkpoint of step s first calls `truncate_to(s)`; its loss logs then equal those of an
    uninterrupted run. For that, `step(s)` and `validation(s)` must come before the checkpoint of step s is written,
    with `sync()` in between if the log must also survive a power cut.

    Args:
        folder: the run folder, created if missing.
        total_steps: optimiser steps of the whole run, for the percentage and the time left.
        stream: where to show progress, standard error by default.
        quiet: show nothing.
        report_to: destinations that also get the metrics, see `training.reports`.
        tokens_per_step: on average, for the time left.

    Raises (all methods):
        UserError: a file cannot be written or, when appending, holds anything but this run's earlier steps.
    """

    def __init__(self, folder: str | os.PathLike, total_steps: int | None = None,
                 stream: TextIO | None = None, quiet: bool = False, report_to: Sequence[str] = (),
                 tokens_per_step: float | None = None):
        self.folder = Path(folder)
        self._report_to, self._settings = report_to, {}
        self._progress = ProgressBar(total_steps, None if quiet else stream or sys.stderr, tokens_per_step)
        self._files: dict[str, BinaryIO] = {}
        self._reports: Reports | None = None
        self._last_step: int | None = None  # None: nothing written or cut yet
        self._resumed_at: int | None = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def truncate_to(self, step: int) -> None:
        """Cut the logs back to optimiser step `step`; a half-written last line is dropped.

        Step 0 empties them: a run without a checkpoint starts over, with a validation before its first step. Anything
        may follow `step`: a power cut leaves zeros in place of lines that were not yet written.

        Raises:
            UserError: a line up to `step` is damaged, or the logs hold fewer steps than the checkpoint.
        """
        if self._files:
            raise ValueError("truncate_to must be called before the first line is written")
        rows = _whole_lines(self.folder / "metrics.jsonl")
        kept, validations = self._known_rows(rows, step)

        losses = _whole_lines(self.folder / "train_loss.txt")
        validation_losses = _whole_lines(self.folder / "val_loss.txt")
        short = [f"{name}: {len(lines)} whole lines, expected at least {expected}"
                 for name, lines, expected in (("train_loss.txt", losses, step),
                                               ("val_loss.txt", validation_losses, validations))
                 if len(lines) < expected]
        if short:
            raise UserError(f"{self.folder}: the logs end before the checkpoint of step {step} ({'; '.join(short)}). "
                            "Put the logs of this run back, or start a new run in another folder.")
        for name, lines in (("train_loss.txt", losses[:step]), ("val_loss.txt", validation_losses[:validations]),
                            ("metrics.jsonl", kept), ("run.log", _whole_lines(self.folder / "run.log"))):
            with atomic_write(self.folder / name, "wb") as stream:
                stream.writelines(line + b"\n" for line in lines)
        self._resumed_at = step
        self._progress.start_at(step)

    def step(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, tokens: int, questions: int,
             seconds: float, skipped: bool = False) -> None:
        """Log optimiser step `step`, counted from 1: mean loss in nats per label, work done and time taken.

        Args:
            skipped: it changed nothing, because its loss or gradient is not finite.
        """
        self._start(expected_steps=step - 1)
        loss, learning_rate, grad_norm = float(loss), float(learning_rate), float(grad_norm)
        row = {"train_loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm, "tokens": int(tokens),
               "questions": int(questions), "seconds": round(float(seconds), 6)}
        self._append("metrics.jsonl", _json({"step": step, **row, **({"skipped": True} if skipped else {})}))
        self._append("train_loss.txt", repr(loss))
        self._last_step = step
        self._report(step, {**row, "tokens_per_second": tokens / max(seconds, 1e-9)})
        self._progress.step(step, loss, tokens, questions, seconds)

    def validation(self, step: int, *, loss: float, **metrics: float) -> None:
        """Log the validation loss after optimiser step `step` (0: before training), and other `metrics` by name."""
        self._start(expected_steps=step)
        loss, metrics = float(loss), {name: float(value) for name, value in metrics.items()}
        row = {"val_loss": loss, **metrics}
        self._append("metrics.jsonl", _json({"step": step, **row}))
        self._append("val_loss.txt", repr(loss))
        self._report(step, row)
        others = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
        self.message(f"step {step}: validation loss {loss:.4f}{others}")

    def message(self, text: str) -> None:
        """Write a line to run.log, with the time, and to the screen, above the progress bar."""
        self._append("run.log", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
        self._progress.write(text)

    def system(self, information: Mapping[str, Any]) -> None:
        """Append `information` (name → value) to run.log."""
        width = max(map(len, information), default=0)
        lines = [f"  {name:<{width}}  {value}" for name, value in information.items()]
        self._append("run.log", "\n".join([f"{time.strftime('%Y-%m-%d %H:%M:%S')} system", *lines]))

    def config(self, settings: Mapping[str, Any]) -> None:
        """Write the resolved settings to config.yaml, in the form of a recipe."""
        self._settings = dict(settings)
        with atomic_write(self.folder / "config.yaml") as stream:
            yaml.safe_dump(dict(settings), stream, sort_keys=False, allow_unicode=True)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json; numbers that are not finite become null."""
        write_json(self.folder / "summary.json", _finite(dict(values)))

    def sync(self) -> None:
        """Flush everything logged so far to the disk."""
        for name, stream in self._files.items():
            with self._writing(name):
                os.fsync(stream.fileno())
        if self._reports is not None:
            self._reports.sync()
        with self._writing(""):
            sync(self.folder)

    def close(self) -> None:
        """End the progress bar and close the files. Calling it twice does no harm."""
        self._progress.close()
        if self._reports is not None:
            self._reports.close()
            self._reports = None
        for name, stream in self._files.items():
            with self._writing(name):
                stream.close()
        self._files = {}

    def _known_rows(self, rows: list[bytes], step: int) -> tuple[list[bytes], int]:
        """The rows of metrics.jsonl up to optimiser step `step`, and how many of them are validations."""
        kept, trained, validations = [], 0, 0
        for number, row in enumerate(rows if step else (), 1):
            try:
                at, is_validation = _row_step(self.folder / "metrics.jsonl", number, row)
            except UserError:
                if trained < step:
                    raise
                break
            if at > step:
                break
            kept.append(row)
            validations += is_validation
            trained += not is_validation
        return kept, validations

    def _start(self, expected_steps: int) -> None:
        first = self._last_step is None
        if first:
            self._last_step = len(_whole_lines(self.folder / "train_loss.txt"))
        if self._last_step != expected_steps:
            raise UserError(f"{self.folder / 'train_loss.txt'}: holds {self._last_step} steps, expected "
                            f"{expected_steps}. Resume that run, or choose another output folder.")
        if first and self._report_to:
            self._reports = Reports(self._report_to, Run(self.folder, self._settings, self._resumed_at), self.message)

    def _append(self, name: str, line: str) -> None:
        with self._writing(name):
            if name not in self._files:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._files[name] = open(self.folder / name, "ab")
            self._files[name].write(line.encode() + b"\n")
            self._files[name].flush()

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        if self._reports is not None:
            self._reports.row(step, values)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder / name}: cannot be written ({error.strerror or error}). Free disk space "
                            "or name a writable folder; --resume continues from the last checkpoint."
                            ) from error


class NoLog:
    """Takes the place of `RunLog` where another process keeps the log."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of `path` that end in a line feed, without it; none if the file does not exist."""
    try:
        path.lstat()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error) from error
    return read_input(path).split(b"\n")[:-1]


def _row_step(path: Path, number: int, row: bytes) -> tuple[int, bool]:
    """(step, is a validation) of line `number` of metrics.jsonl."""
    try:
        values = load_json(row)
    except ValueError:
        values = None
    if isinstance(values, dict) and type(values.get("step")) is int:
        return values["step"], "val_loss" in values
    raise UserError(f"{path}, line {number}: expected a JSON object with a step, found {row[:80]!r}. "
                    "Put the file of this run back, or start a new run in another folder.")


def _json(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` with numbers that JSON cannot hold replaced by null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
