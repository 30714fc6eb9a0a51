"""Contenders take turns at one workload; every measurement is kept."""

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
    """Each contender runs once per round, in reverse order in every other round; the first rounds are warm-up.

    Each has its own process, so that memory is measured separately. One that fails is left out from then on.

    Args:
        options: arguments of every `Contender`, such as the number of threads.
        job, spec: see worker.py.
        log: file for the processes' output.
        say: receives a line per run.

    Returns: per contender its name, `ours`, module, options, spec, format, `warmups` and `runs` (worker.py's reply per
        run), `check` after the first run, and `error` if it failed.
    """
    records = [{"name": c.name, "ours": c.module == "ours", "module": c.module, "options": c.options, "spec": c.spec,
                "format": c.format, "check": None, "warmups": [], "runs": []} for c in contenders]
    workers: dict[int, Worker] = {}

    @contextlib.contextmanager
    def failure_noted(index: int) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            records[index]["error"] = str(error)
            workers.pop(index, None)
            say(f"  {contenders[index].name}: failed: {error}")

    with contextlib.ExitStack() as stack:
        for index, contender in enumerate(contenders):
            with failure_noted(index):
                worker = stack.enter_context(Worker(contender.module, {**options, **contender.options}, log,
                                                    contender.environment))
                worker.ask("start")
                worker.ask("prepare", job=job, **spec, **contender.spec)
                workers[index] = worker
        for number in range(warmups + repeats):
            order = sorted(workers, reverse=number % 2 == 1)
            for index in order:
                record = records[index]
                with failure_noted(index):
                    measured = workers[index].ask("run")
                    if record["check"] is None:
                        record["check"] = workers[index].ask("check")["value"]
                    counted = number >= warmups
                    record["runs" if counted else "warmups"].append(measured)
                    say(f"  {record['name']}: {measured['seconds']:.3g} s, {measured['cpu_seconds']:.3g} s of "
                        f"processor time, peak {measured['peak_mib']:.0f} MiB{'' if counted else ' (warm-up)'}")
    return records
