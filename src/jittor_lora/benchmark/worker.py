"""One contender in its own process, which executes JSON commands from standard input, one per line.

    {"do": "start"}                          create the contender
    {"do": "prepare", "job": "step", ...}    prepare a job
    {"do": "run"}                            run it once; replies with seconds, cpu_seconds, others_cpu_seconds, memory
    {"do": "check"}                          replies with the first run's results that contenders must agree on
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple


class Job(NamedTuple):
    """Something to measure.

    Attributes:
        run: does it once.
        check: returns the results that contenders must agree on; called after the first run.
    """

    run: Callable[[], Any]
    check: Callable[[], Any]


def main(module: str, options: str) -> None:
    """
    Args:
        module: of this package, with a class `Contender` whose methods, named by job, return a `Job`. Its `free`, if it
            has one, gives back the memory of the job before.
        options: the arguments of the class in JSON.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keeps output of libraries apart from replies
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    worker = _Worker()
    for line in iter(sys.stdin.readline, ""):
        command = json.loads(line)
        try:
            if command["do"] == "start":
                contender = importlib.import_module(f"jittor_lora.benchmark.{module}").Contender(**json.loads(options))
                reply = {}
            elif command["do"] == "prepare":
                worker.job = None  # frees what it holds
                getattr(contender, "free", gc.collect)()
                worker.job = getattr(contender, command.pop("job"))({k: v for k, v in command.items() if k != "do"})
                reply = {}
            else:
                reply = getattr(worker, command["do"])()
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


def end_with(parent: int) -> None:
    """End this process soon after its parent, however the parent ends: a run may take minutes."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class _Worker:
    job: Job | None = None

    def run(self) -> dict[str, Any]:
        started, cpu, busy = time.perf_counter(), time.process_time(), machine_seconds()
        self.job.run()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu,
                "others_cpu_seconds": max(0.0, machine_seconds() - busy - cpu), **memory()}

    def check(self) -> dict[str, Any]:
        return {"value": self.job.check()}


def machine_seconds() -> float:
    """Processor time used since boot by all processes, and by other virtual machines on the same host."""
    with open("/proc/stat") as stream:
        user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, stream.readline().split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def memory() -> dict[str, float]:
    """Peak and current resident memory of this process, in MiB."""
    with open("/proc/self/status") as stream:
        found = dict(re.findall(r"^(VmHWM|VmRSS):\s*(\d+) kB$", stream.read(), re.MULTILINE))
    return {"peak_mib": int(found["VmHWM"]) / 1024, "rss_mib": int(found["VmRSS"]) / 1024}


if __name__ == "__main__":
    main(*sys.argv[1:])
