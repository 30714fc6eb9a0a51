"""The runs below a folder, for the page: reads their files only, while they may be written."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from jittor_lora.serving.api.plain import shown
from jittor_lora.serving.views.run_curves import LARGEST_LOSS_FILE, CurveReader, RunCurves
from jittor_lora.serving.views.run_find import file_in, find_runs, small_file_in
from jittor_lora.serving.views.run_notes import Note
from jittor_lora.serving.views.run_results import RunResults, read_results
from jittor_lora.serving.views.run_state import TRAINING, RunState, StateReader, noted

MOST_RUNS = 500
FRESH = 1.0  # seconds for which a listing is given again
MOST_READERS = 16  # of curves, kept with what they have read


@dataclass
class RunList:
    """
    Attributes:
        folder: name of the folder searched; None if the server was given none.
        now: the server's time, seconds since 1970.
        data: runs that train first, then by the time of their last change.
    """

    folder: Optional[str]
    now: float
    data: list[RunState] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass
class RunDetails:
    """
    Attributes:
        settings, summary, results: None in an answer to `since`: ask for them when `run.revision` changes.
        settings: as in config.yaml, where all values are text.
    """

    run: RunState
    now: float
    curves: Optional[RunCurves] = None
    settings: Optional[dict[str, Any]] = None
    summary: Optional[dict[str, Any]] = None
    results: Optional[RunResults] = None
    notes: list[Note] = field(default_factory=list)


class RunFiles:
    """One reader of all runs in a folder; its methods may be called from any thread, and take turns.

    Args:
        root: None for no folder.
    """

    def __init__(self, root: Optional[Path]):
        self._root, self._turn = root and root.absolute(), threading.Lock()
        self._states: dict[str, StateReader] = {}
        self._curves: OrderedDict[str, CurveReader] = OrderedDict()
        self._listed: Optional[RunList] = None
        self._searched = 0.0

    def listing(self) -> RunList:
        with self._turn:
            return self._listing()

    def details(self, name: str, since: Optional[int] = None, version: str = "") -> Optional[RunDetails]:
        """
        Args:
            name: looked up among those of a listing; never part of a path.
            since: give only the curves, and of these only what follows this step; `version` as there.

        Returns: None if there is no such run.
        """
        with self._turn:
            if name not in self._states:
                self._listing()
            reader = self._states.get(name)
            if reader is None or not reader.folder.is_dir() or reader.folder.is_symlink():
                return None
            found = RunDetails(reader.read(), time.time())
            found.curves = noted(found.notes, reader.folder, "", lambda: self._curves_of(reader, since or 0, version))
            if since is None:
                found.settings, found.summary = shown(reader.settings), shown(reader.summary)
                found.results = read_results(reader.folder)
            return found

    def _listing(self) -> RunList:
        if self._listed is None or time.monotonic() - self._searched > FRESH:
            self._listed, self._searched = self._search(), time.monotonic()
        return self._listed

    def _search(self) -> RunList:
        if self._root is None:
            return RunList(None, time.time())
        found = find_runs(self._root)
        names = sorted(found.folders)
        self._states = {name: self._states.get(name) or StateReader(name, found.folders[name]) for name in names}
        states = [reader.read() for reader in self._states.values()]
        states.sort(key=lambda state: (state.state != TRAINING, -(state.changed or 0), state.id))
        if len(states) > MOST_RUNS:
            found.notes.append(Note("runs", count=MOST_RUNS))
        name = self._root.name.encode("utf-8", "backslashreplace").decode()
        return RunList(name, time.time(), states[:MOST_RUNS], found.notes)

    def _curves_of(self, state: StateReader, since: int, version: str) -> Optional[RunCurves]:
        reader = self._curves.pop(state.name, None) or CurveReader()
        self._curves[state.name] = reader
        while len(self._curves) > MOST_READERS:
            self._curves.popitem(last=False)
        metrics = file_in(state.folder, "metrics.jsonl")
        if metrics is not None:
            return reader.metrics(metrics, since, version)
        train, validation = (small_file_in(state.folder, LARGEST_LOSS_FILE, name)
                             for name in ("train_loss.txt", "val_loss.txt"))
        return reader.loss_files(train, validation) if train else None
