"""The metrics of a run sent elsewhere: TensorBoard, SwanLab, Weights & Biases.

A destination is a module here, with a function `start(run)` that returns a `Report`, and a line in `PACKAGES`
(settings/reports.py). It receives the rows of metrics.jsonl.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Protocol


class Run(NamedTuple):
    """What is reported on.

    Attributes:
        folder: of the run.
        settings: of the run, as in config.yaml.
        resumed_at: the step of the checkpoint that it continues from; None at a start.
    """

    folder: Path
    settings: Mapping[str, Any]
    resumed_at: Optional[int]

    @property
    def reports(self) -> Path:
        """The folder for files of services."""
        return self.folder / "reports"


class Report(Protocol):
    """One destination. A run that resumes from step s reports the steps from s + 1 on once more."""

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics by name at optimiser step `step`; there may be several rows for one step."""

    def sync(self) -> None:
        """Flush to the disk what is kept there."""

    def close(self) -> None:
        """The run has ended or is interrupted."""


class Reports:
    """All destinations of a run. One that fails is left out from then on: no training ends for a chart.

    Args:
        destinations: their names.
        say: shows a message; called once for a destination that fails.
    """

    def __init__(self, destinations: Sequence[str], run: Run, say: Callable[[str], None]):
        self._say, self._open = say, {}
        for name in destinations:
            module = importlib.import_module(f"{__name__}.{name}")
            self._open[name] = None
            self._try(name, lambda module=module, name=name: self._open.update({name: module.start(run)}))

    def row(self, step: int, values: Mapping[str, float]) -> None:
        for name, report in list(self._open.items()):
            self._try(name, lambda report=report: report.row(step, values))

    def sync(self) -> None:
        for name, report in list(self._open.items()):
            self._try(name, report.sync)

    def close(self) -> None:
        for name, report in list(self._open.items()):
            self._try(name, report.close)
        self._open = {}

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever the package, its service or the disk comes up with
            self._open.pop(name, None)
            reason = next(iter(str(error).strip().splitlines()), "")[:200].rstrip(".")
            self._say(f"{name}: {type(error).__name__}: {reason}. The run goes on without it; metrics.jsonl has all "
                      "numbers.")
