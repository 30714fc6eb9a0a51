"""Where a run stands: from its lock, its settings, its summary, and the ends of its logs."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

from jittor_lora.errors import UserError
from jittor_lora.evaluation.predictions import read_json
from jittor_lora.files.untrusted import load_json, open_input
from jittor_lora.serving.api.plain import is_number, shown_text
from jittor_lora.serving.views.run_curves import MOST_STEPS, rate
from jittor_lora.serving.views.run_find import file_in, small_file_in
from jittor_lora.serving.views.run_notes import Note
from jittor_lora.settings import recipe
from jittor_lora.system.locks import is_locked
from jittor_lora.tasks.run_folder import EVALUATION, SETTINGS_FILE, SUMMARY_FILE

TRAINING, INTERRUPTED, FINISHED, UNKNOWN = "training", "interrupted", "finished", "unknown"
LARGEST_SUMMARY = 64 << 10  # bytes
END = 64 << 10  # bytes of a log's end
START = 256 << 10  # bytes of run.log, in which the number of steps is said
RECENT = 200  # steps for the speed
_STEPS = re.compile(rb"^[\d-]{10} [\d:]{8} Steps: ([\d,]{1,20})\.", re.MULTILINE)  # as `tasks.run_report` says it
_STATED = ("config.yaml", "summary.json", "metrics.jsonl", "train_loss.txt", "val_loss.txt", "run.log")


@dataclass
class RunState:
    """
    Attributes:
        id: by which it is asked for.
        state: "training"; "interrupted", which --resume continues; "finished"; "unknown", for logs of other programs,
            or where the file system has no locks.
        ended: as summary.json says it: "finished" or "early stop".
        evaluating: `quickstart` is at work in it.
        steps, total_steps: done, and of the whole run.
        train_loss, val_loss: the last.
        changed: time of the last change, seconds since 1970.
        tokens_per_second: over the last steps.
        seconds_left: for the steps that are left, without validations.
        base, method: of the settings.
        revision: changes with any file but the logs.
    """

    id: str
    state: str
    ended: Optional[str] = None
    evaluating: bool = False
    steps: Optional[int] = None
    total_steps: Optional[int] = None
    train_loss: Optional[float] = None
    val_loss: Optional[float] = None
    changed: Optional[float] = None
    tokens_per_second: Optional[float] = None
    seconds_left: Optional[float] = None
    base: Optional[str] = None
    method: Optional[str] = None
    revision: str = ""
    notes: list[Note] = field(default_factory=list)


class StateReader:
    """Reads the state of one run again and again, and its files only when they have changed."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self._stamps: Any = None
        self._steady = RunState(name, UNKNOWN)
        self.settings: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def read(self) -> RunState:
        locked = is_locked(self.folder)
        stamps = {name: _stamp(self.folder / name) for name in _STATED}
        if stamps != self._stamps:
            self._stamps = stamps
            self._steady = self._read(stamps)
        state = RunState(**vars(self._steady))
        state.state = self._state(locked, stamps)
        if state.state != FINISHED:
            state.ended = None
        if state.state != TRAINING:
            state.seconds_left = None
            state.evaluating = bool(is_locked(self.folder / EVALUATION))
        evaluation = [_stamp(path) for path in evaluation_folders(self.folder, [])]
        state.revision = f"{hash((stamps['config.yaml'], stamps['summary.json'], *evaluation)) & (1 << 60) - 1:x}"
        return state

    def _state(self, locked: Optional[bool], stamps: Mapping[str, Any]) -> str:
        if locked:
            return TRAINING
        steps = self.summary.get("steps")
        if self.summary and not (type(steps) is int and steps < (self._steady.steps or 0)):  # else it went on
            return FINISHED
        return UNKNOWN if locked is None or stamps["config.yaml"] is None else INTERRUPTED

    def _read(self, stamps: Mapping[str, Any]) -> RunState:
        notes: list[Note] = []
        self.settings = noted(notes, self.folder, SETTINGS_FILE, self._settings) or {}
        self.summary = noted(notes, self.folder, SUMMARY_FILE, self._summary) or {}
        rows = noted(notes, self.folder, "metrics.jsonl", lambda: _last_rows(self.folder)) or []
        trained = [row for row in rows if "val_loss" not in row]
        recent = trained[-RECENT:]
        seconds, tokens = (_total(recent, name) for name in ("seconds", "tokens"))
        steps = _count(trained[-1]["step"] if trained else self.summary.get("steps"))
        losses = {name: noted(notes, self.folder, name, lambda name=name: _last_number(self.folder, name))
                  for name in ("train_loss.txt", "val_loss.txt")}
        total = _count(self.summary.get("total_steps")) \
            or noted(notes, self.folder, "run.log", lambda: _total_steps(self.folder))
        left = None
        if seconds and total is not None and steps is not None and total >= steps:
            left = (total - steps) * seconds / len(recent)
        ended = self.summary.get("ended")
        return RunState(
            self.name, UNKNOWN, ended if isinstance(ended, str) else None, steps=steps, total_steps=total,
            train_loss=losses["train_loss.txt"], val_loss=losses["val_loss.txt"],
            changed=max((stamp[2] / 1e9 for stamp in stamps.values() if stamp), default=None),
            tokens_per_second=rate(tokens, seconds), seconds_left=left,
            base=shown_text(self.summary.get("base")) or shown_text(self.settings.get("base")),
            method=shown_text(self.settings.get("method")), notes=notes)

    def _settings(self) -> dict[str, Any]:
        path = file_in(self.folder, SETTINGS_FILE)
        return recipe.read(path)[0] if path else {}

    def _summary(self) -> dict[str, Any]:
        path = small_file_in(self.folder, LARGEST_SUMMARY, SUMMARY_FILE)
        found = read_json(path, "the summary of a run") if path else {}
        return found if isinstance(found, dict) else {}


def noted(notes: list[Note], run: Path, file: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; None with a note if it cannot."""
    try:
        return read()
    except UserError as error:
        notes.append(Note("file", file, text=str(error).replace(f"{run}{os.sep}", "")))
    except OSError as error:
        notes.append(Note("file", file, text=f"{file}: cannot be read ({error.strerror or error})."))
    return None


def evaluation_folders(run: Path, notes: list[Note]) -> list[Path]:
    """The folders of a run that may hold scores: `evaluation` and those in it."""
    own = noted(notes, run, EVALUATION, lambda: file_in(run, EVALUATION))
    if own is None or not own.is_dir():
        return []
    below = noted(notes, run, EVALUATION, lambda: sorted(
        entry.name for entry, _ in zip(os.scandir(own), range(100)) if entry.is_dir(follow_symlinks=False)))
    return [own, *(own / name for name in below or () if not name.startswith("."))]


def _last_rows(run: Path) -> list[dict[str, Any]]:
    """The last whole rows of metrics.jsonl that have a step."""
    rows = []
    for line in _end(run, "metrics.jsonl"):
        try:
            row = load_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and _count(row.get("step")) is not None:
            rows.append(row)
    return rows


def _last_number(run: Path, name: str) -> Optional[float]:
    """The last number of a loss file; None if it is not finite, too."""
    for line in reversed(_end(run, name)):
        try:
            number = float(line[:100])
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None


def _end(run: Path, name: str) -> list[bytes]:
    """The last whole lines of a file."""
    path = file_in(run, name)
    if path is None:
        return []
    with open_input(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - END))
        lines = stream.read(END).split(b"\n")[:-1]
    return lines[1:] if size > END else lines


def _total_steps(run: Path) -> Optional[int]:
    path = file_in(run, "run.log")
    if path is None:
        return None
    with open_input(path) as stream:
        said = _STEPS.findall(stream.read(START))
    return _count(int(said[-1].replace(b",", b"") or 0)) if said else None


def _stamp(path: Path) -> Optional[tuple[int, int, int]]:
    """Changes with the file; None for none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _count(value: Any) -> Optional[int]:
    return value if type(value) is int and 0 <= value <= MOST_STEPS else None


def _total(rows: list[dict[str, Any]], name: str) -> Optional[float]:
    values = [row.get(name) for row in rows]
    if not values or not all(map(is_number, values)):
        return None
    return float(sum(values))
