"""The parent's side of a worker process: starts it, sends it commands, ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jittor_lora.system.runtime import environment


class WorkerError(Exception):
    """A contender's command failed; the message says why."""


class Worker:
    """
    Args:
        module: see `turns.Contender`.
        options: arguments of its `Contender`.
        log: file to which its standard error is appended.
        extra: further variables of its environment.
    """

    def __init__(self, module: str, options: dict[str, Any], log: Path, extra: Mapping[str, str] | None = None):
        self.log = log
        # In a new session, so that Ctrl-C reaches only the parent, whose exit ends the worker.
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jittor_lora.benchmark.worker", module, json.dumps(options)], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
                env={**variables(module, options["threads"]), **(extra or {})})

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its reply.

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
    if module != "ours":
        chosen.pop("OMP_WAIT_POLICY", None)  # they are faster with their own default
        chosen["HF_HUB_OFFLINE"] = "1"  # the base is a folder
    return chosen
