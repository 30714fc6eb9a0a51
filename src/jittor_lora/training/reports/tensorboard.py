"""TensorBoard's event files, in `tensorboard/` of the run folder, through the package tensorboardX.

Not through its `SummaryWriter`, whose thread loses the last points of a killed run: each row reaches the operating
system before `row` returns.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

from jittor_lora.files.atomic import sync
from jittor_lora.training.reports import Run


def start(run: Run) -> TensorBoard:
    return TensorBoard(run)


class TensorBoard:
    """A new event file. TensorBoard reads the files of a folder in order of their names: that of a resumed run hides
    the points after its checkpoint in earlier ones."""

    def __init__(self, run: Run):
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        self._event, self._summary = Event, Summary
        folder = run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        earlier = set(folder.iterdir())
        self._writer = EventsWriter(str(folder / "events"), f".{len(earlier):04d}")
        (self._path,) = set(folder.iterdir()) - earlier
        if run.resumed_at is not None:
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=run.resumed_at + 1, session_log=log))
        self._writer.flush()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value)
                                       for name, value in values.items()])
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def sync(self) -> None:
        sync(self._path)

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Within the block torch cannot be imported. tensorboardX imports it where it is installed, for seconds, with a
    second OpenMP runtime beside Jittor's, and does without where it is not."""
    blocked = "torch" not in sys.modules
    if blocked:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if blocked:
            del sys.modules["torch"]
