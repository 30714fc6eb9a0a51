"""A worker from the outside."""

from __future__ import annotations

import pytest

from jittor_lora.benchmark.process import Worker, WorkerError, variables


def test_failures_are_told(tmp_path):
    options = {"base": str(tmp_path / "nothing"), "threads": 1, "precision": "fp32"}
    with Worker("ours", options, tmp_path / "log") as worker:
        with pytest.raises(WorkerError, match="UserError.*nothing"):
            worker.ask("start")
        worker.process.kill()
        with pytest.raises(WorkerError, match="ended with code -9"):
            worker.ask("run")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_torch_waits_in_its_own_way(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "OMP_WAIT_POLICY" not in variables("peers", 2)
    assert variables("ours", 2)["OMP_WAIT_POLICY"] == "passive"
    assert variables("ours", 2)["OMP_NUM_THREADS"] == variables("peers", 2)["OMP_NUM_THREADS"] == "2"
