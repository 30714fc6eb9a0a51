"""Contenders take turns at a workload; every measurement is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jittor_lora.benchmark.process import Worker, WorkerError


@dataclass(frozen=True)
class Contender:
    """
    Args:
        name: as shown in the tables.
        module: the file of this folder with its class, "ours" or that of a peer (see tools.py).
        options: arguments of the module's `Contender`, in addition to the common ones.
        spec: arguments of its job, in addition to the workload's.
        format: in what its weights are stored, if that is compared.
        environment: further variables of its process.
    """

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    format: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def take_turns(contenders: Sequence[Contender], options: dict[str, Any], job: str, spec: dict[str, Any], warmups: int,
               repeats: int, log: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One workload of a `Race`; see there."""
    with Race(contenders, options, log, say) as race:
        return race.run(job, spec, warmups, repeats)


class Race:
    """Contenders, each in its own process, so that memory is measured separately. One that fails is left out from then
    on.

    Args:
        options: arguments of every `Contender`, such as the number of threads.
        log: file for the processes' output.
        say: receives a line per run.
        device_mib: the memory in use on the device. Only one contender works at a time, so what is added meanwhile is
            its own.
    """

    def __init__(self, contenders: Sequence[Contender], options: dict[str, Any], log: Path, say: Callable[[str], None],
                 device_mib: Callable[[], float] | None = None):
        self.contenders, self.options, self.log, self.say = contenders, options, log, say
        self.device_mib = device_mib
        self.workers: dict[int, Worker] = {}
        self.errors: dict[int, str] = {}
        self.held = [0.0] * len(contenders)  # MiB on the device
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Race:
        with contextlib.ExitStack() as stack:
            for index, contender in enumerate(self.contenders):
                with self._failure_noted(index):
                    self.workers[index] = stack.enter_context(Worker(
                        contender.module, {**self.options, **contender.options}, self.log, contender.environment))
                    self._ask(index, "start")
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()

    def run(self, job: str, spec: dict[str, Any], warmups: int, repeats: int) -> list[dict[str, Any]]:
        """Each contender does the job once per round, in reverse order in every other round; the first rounds are
        warm-up.

        Args:
            job, spec: see worker.py.

        Returns: per contender its name, `ours`, module, options, spec, format, `warmups` and `runs` (worker.py's reply
            per run), `check` after the first run, `device_mib` if that is measured, and `error` if it failed.
        """
        records = [{"name": c.name, "ours": c.module == "ours", "module": c.module, "options": c.options,
                    "spec": c.spec, "format": c.format, "check": None, "warmups": [], "runs": []}
                   for c in self.contenders]
        for index in sorted(self.workers):
            with self._failure_noted(index):
                self._ask(index, "prepare", job=job, **spec, **self.contenders[index].spec)
        for number in range(warmups + repeats):
            for index in sorted(self.workers, reverse=number % 2 == 1):
                with self._failure_noted(index):
                    self._round(index, records[index], number >= warmups)
        for index, error in self.errors.items():
            records[index]["error"] = error
        return records

    def _round(self, index: int, record: dict[str, Any], counted: bool) -> None:
        measured = self._ask(index, "run")
        if record["check"] is None:
            record["check"] = self._ask(index, "check")["value"]
        if self.device_mib is not None:
            record["device_mib"] = max(self.held[index], record.get("device_mib", 0.0))
        record["runs" if counted else "warmups"].append(measured)
        self.say(f"  {record['name']}: {measured['seconds']:.3g} s, {measured['cpu_seconds']:.3g} s of processor time, "
                 f"peak {measured['peak_mib']:.0f} MiB{'' if counted else ' (warm-up)'}")

    def _ask(self, index: int, what: str, **arguments: Any) -> dict[str, Any]:
        before = self.device_mib() if self.device_mib is not None else 0.0
        reply = self.workers[index].ask(what, **arguments)
        if self.device_mib is not None:
            self.held[index] += self.device_mib() - before
        return reply

    @contextlib.contextmanager
    def _failure_noted(self, index: int) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            self.errors[index] = str(error)
            self.workers.pop(index, None)
            self.say(f"  {self.contenders[index].name}: failed: {error}")
