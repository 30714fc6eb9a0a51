"""benchmarks/cuda_kernels.py on the emulated backend: it times every kernel that training uses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cuda_emulator import emulated
from programs import load_program


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return load_program("benchmarks/cuda_kernels.py")


def test_every_operation_is_timed(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cuda_kernels.py", "--output", str(tmp_path), "--base", "tiny", "--stock"])
    with emulated():
        program.main()
    best, *lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert best["part"] == "kernels: best" and best["bytes"] > 0 and set(best["flops"]) == {"fp32", "bf16"}
    assert all(0 < line["seconds"] < 10 and line["share"] > 0 and line["stock_seconds"] > 0 for line in lines)
    assert {line["group"] for line in lines} == {*program.GROUPS}
    names = [(line["name"], line["precision"]) for line in lines]
    assert len(set(names)) == len(names)
    for product in ("cross-entropy and its gradient", "linear with LoRA", "attention, gradient"):
        assert {(product, "fp32"), (product, "bf16")} <= {*names}
    assert {"GELU, gradient", "AdamW", "rotary", "label rows", "RMS norm"} <= {name for name, _ in names}
    assert len(capsys.readouterr().out.splitlines()) == len(lines) + 4
    report = load_program("benchmarks/gpu_report.py")
    assert "| AdamW | fp32 |" in report.kernels(lines) and "TFLOP/s in bf16" in report.best([best])


def test_unknown_groups_are_refused(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cuda_kernels.py", "--output", str(tmp_path), "--groups", "norms,dreams"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--groups: expected some of norms, " in capsys.readouterr().err
