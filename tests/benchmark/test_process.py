"""A worker from the outside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jittor_lora.benchmark.process import Worker, WorkerError, variables


def test_failures_are_reported(tmp_path):
    options = {"base": str(tmp_path / "nothing"), "threads": 1, "precision": "fp32"}
    with Worker("ours", options, tmp_path / "log") as worker:
        with pytest.raises(WorkerError, match="UserError.*nothing"):
            worker.ask("start")
        worker.process.kill()
        with pytest.raises(WorkerError, match="ended with code -9"):
            worker.ask("run")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_torch_keeps_its_own_wait_policy(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "OMP_WAIT_POLICY" not in variables("peers", 2)
    assert variables("ours", 2)["OMP_WAIT_POLICY"] == "passive"
    assert variables("ours", 2)["OMP_NUM_THREADS"] == variables("peers", 2)["OMP_NUM_THREADS"] == "2"


PARENT = """
import subprocess, sys, time
child = "import os; from jittor_lora.benchmark.worker import end_with; end_with(os.getppid())"
print(subprocess.Popen([sys.executable, "-c", child]).pid, flush=True)
time.sleep(60)
"""


def test_a_worker_in_the_middle_of_a_run_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True,
                              env=variables("ours", 1))
    child = Path("/proc", parent.stdout.readline().strip(), "stat")
    time.sleep(1.5)
    assert alive(child)
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(stat: Path) -> bool:
    """Whether a process runs, as opposed to a zombie that was not reaped."""
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
