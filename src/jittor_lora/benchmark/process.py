"""The parent's side of a worker: a process that is started, asked and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jittor_lora.system.runtime import environment


class WorkerError(Exception):
    """A contender could not do what it was asked; the message says why."""


class Worker:
    """
    Args:
        module: "ours" or "peers".
        options: arguments of its `Contender`.
        log: file that its standard error is added to.
    """

    def __init__(self, module: str, options: dict[str, Any], log: Path):
        self.log = log
        # In a session of its own: a Ctrl-C in the terminal is for the parent, whose end ends the worker.
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jittor_lora.benchmark.worker", module, json.dumps(options)], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
                env=variables(module, options["threads"]))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """
        Raises:
            WorkerError: it failed, or the process ended.
        """
        try:
            self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended with code {self.process.wait()}; see {self.log}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply


def variables(module: str, threads: int) -> dict[str, str]:
    """The environment of a worker."""
    chosen = {**environment(), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if module == "peers":
        chosen.pop("OMP_WAIT_POLICY", None)  # torch's own choice is the faster one for torch
        chosen["HF_HUB_OFFLINE"] = "1"  # the base is a folder
    return chosen
