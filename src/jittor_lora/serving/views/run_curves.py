"""The curves of a run, from logs that may still grow, in as many points as a page can draw."""

from __future__ import annotations

import math
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from jittor_lora.evaluation.loss_logs import read_loss_files
from jittor_lora.files.untrusted import load_json, open_input
from jittor_lora.serving.views.run_notes import Note
from jittor_lora.serving.views.thinned import Thinned

MOST_POINTS, MOST_VALIDATIONS = 2000, 500
AT_A_TIME = 2 << 20  # bytes of metrics.jsonl read for one request
LARGEST_LOSS_FILE = 4 << 20  # bytes
MOST_STEPS = 10**12
TRAINING = ("train_loss", "learning_rate", "grad_norm", "tokens", "seconds")
VALIDATION = ("val_loss", "exact_match", "f1")
_MARK = 64  # bytes by which a file is recognised that has grown


@dataclass
class TrainingPoints:
    """Arrays (n,) by point; null where no value is finite.

    Attributes:
        step: the last step of each point; the values are means over its steps.
    """

    step: list[int] = field(default_factory=list)
    loss: list[Optional[float]] = field(default_factory=list)
    learning_rate: list[Optional[float]] = field(default_factory=list)
    grad_norm: list[Optional[float]] = field(default_factory=list)
    tokens_per_second: list[Optional[float]] = field(default_factory=list)


@dataclass
class ValidationPoints:
    """Arrays (n,) by validation; null where no value is finite. The last two are in percent."""

    step: list[int] = field(default_factory=list)
    loss: list[Optional[float]] = field(default_factory=list)
    exact_match: list[Optional[float]] = field(default_factory=list)
    f1: list[Optional[float]] = field(default_factory=list)


@dataclass
class RunCurves:
    """
    Attributes:
        version: of the points; those of another version do not go together with these.
        since: `training` holds the points after this step; 0 for all.
        complete: points up to this step will not change.
        stride: steps per point.
        unit: what the steps count.
        bytes_left: of the log, still to be read; ask again at once.
        validation: always all.
    """

    version: str
    since: int = 0
    complete: int = 0
    stride: int = 1
    unit: str = "optimizer step"
    bytes_left: int = 0
    training: TrainingPoints = field(default_factory=TrainingPoints)
    validation: ValidationPoints = field(default_factory=ValidationPoints)
    notes: list[Note] = field(default_factory=list)


def rate(amount: Optional[float], seconds: Optional[float]) -> Optional[float]:
    """Per second; None if unknown."""
    if amount is None or seconds is None or seconds <= 0 or not math.isfinite(amount / seconds):
        return None
    return amount / seconds


class CurveReader:
    """Reads the log of one run again and again, each time only what is new, in constant memory."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._version = secrets.token_hex(4)
        self._file: Optional[tuple[int, int]] = None  # device and inode
        self._read, self._mark, self._in_long_line = 0, b"", False
        self._unreadable = self._backward = 0
        self._training, self._validation = Thinned(TRAINING, MOST_POINTS), Thinned(VALIDATION, MOST_VALIDATIONS)

    def metrics(self, path: Path, since: int = 0, version: str = "") -> RunCurves:
        """What metrics.jsonl holds.

        Args:
            since, version: `complete` and `version` of the answer before; leave out its points.

        Raises:
            UserError: it cannot be read.
        """
        with open_input(path) as stream:
            status = os.fstat(stream.fileno())
            file = status.st_dev, status.st_ino
            stream.seek(max(0, self._read - _MARK))
            if file != self._file or status.st_size < self._read or stream.read(len(self._mark)) != self._mark:
                self._start()  # a run that resumes writes a new file
                self._file = file
            stream.seek(self._read)
            content = stream.read(AT_A_TIME)
        self._take(content)
        left = status.st_size - self._read if len(content) == AT_A_TIME else 0
        return self._curves(since, version, left, path.name)

    def loss_files(self, train: Path, validation: Optional[Path]) -> RunCurves:
        """The curves of train_loss.txt and val_loss.txt, which may come from other programs.

        Raises:
            UserError: they cannot be read, or hold no losses.
        """
        self._start()
        found = read_loss_files(train, validation)
        for series, points, name in ((found.train, self._training, "train_loss"),
                                     (found.validation, self._validation, "val_loss")):
            for step, loss in zip(series.steps, series.losses) if series else ():
                if 0 <= step <= MOST_STEPS:
                    points.add(int(step), {name: float(loss)})
        curves = self._curves(0, "", 0, train.name)
        curves.unit = found.unit
        curves.notes += [Note("losses", train.name, text=note) for note in found.notes]
        return curves

    def _take(self, content: bytes) -> None:
        """Read whole lines; one that is longer than what is read at a time is skipped."""
        end = content.rfind(b"\n") + 1
        if not end:
            if len(content) == AT_A_TIME:
                self._unreadable += not self._in_long_line
                self._in_long_line, end = True, len(content)
            self._forward(content[:end])
            return
        lines = content[:end].split(b"\n")[:-1]
        for line in lines[self._in_long_line:]:
            if line.strip():
                self._line(line)
        self._in_long_line = False
        self._forward(content[:end])

    def _forward(self, content: bytes) -> None:
        self._read += len(content)
        self._mark = (self._mark + content)[-_MARK:]

    def _line(self, line: bytes) -> None:
        try:
            row = load_json(line)
        except ValueError:
            row = None
        step = row.get("step") if isinstance(row, dict) else None
        if type(step) is not int or not 0 <= step <= MOST_STEPS:
            self._unreadable += 1
            return
        points = self._validation if "val_loss" in row else self._training
        self._backward += not points.add(step, row)

    def _curves(self, since: int, version: str, left: int, name: str) -> RunCurves:
        own = f"{self._version}-{self._training.stride}"
        since = since if version == own else 0
        steps, means = self._training.after(since)
        rates = [rate(tokens, seconds) for tokens, seconds in zip(means["tokens"], means["seconds"])]
        training = TrainingPoints(steps, means["train_loss"], means["learning_rate"], means["grad_norm"], rates)
        validated, scores = self._validation.after(-1)
        validation = ValidationPoints(validated, scores["val_loss"], scores["exact_match"], scores["f1"])
        counts = {"lines": self._unreadable, "backward": self._backward,
                  "not_finite": self._training.not_finite + self._validation.not_finite}
        notes = [Note(code, name, count) for code, count in counts.items() if count]
        return RunCurves(own, since, self._training.complete, self._training.stride, "optimizer step", left, training,
                         validation, notes)
