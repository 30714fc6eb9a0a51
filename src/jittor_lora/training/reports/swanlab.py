"""SwanLab. Its own settings apply: `SWANLAB_MODE` (online, offline, local, disabled), `SWANLAB_API_KEY`, …

Files of the offline modes are in `reports/swanlog/` of the run folder; `swanlab sync` sends them later.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping

from jittor_lora.training.reports import Run
from jittor_lora.training.reports.run_id import run_id

PROJECT = "jittor-lora"


def start(run: Run) -> SwanLab:
    return SwanLab(run)


class SwanLab:
    """A run at SwanLab, continued by its id if it exists."""

    def __init__(self, run: Run):
        import swanlab
        with _interruption_ours():
            self._run = swanlab.init(
                project=PROJECT, name=run.folder.name, id=run_id(run.reports, "swanlab"), resume="allow",
                log_dir=str(run.reports / "swanlog"), config=dict(run.settings),
                settings=swanlab.Settings(terminal={"proxy_type": "none"}))  # no copy of the screen

    def row(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sync(self) -> None:
        pass  # written as it comes

    def close(self) -> None:
        with _interruption_ours():
            self._run.finish()


@contextlib.contextmanager
def _interruption_ours() -> Iterator[None]:
    """Keeps the handler of Ctrl-C, which SwanLab replaces at its start and puts back at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
