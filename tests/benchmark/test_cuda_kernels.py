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
    output = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["cuda_kernels.py", "--output", str(output), "--base", "tiny", "--stock"])
    with emulated():
        program.main()
    lines = list(map(json.loads, output.read_text().splitlines()))
    assert {line["part"] for line in lines} == {"kernel"}
    limits, timed = lines[:3], lines[3:]
    assert limits[0]["GB/s"] > 0 and [line["precision"] for line in limits[1:]] == ["fp32", "bf16"]
    assert all(0 < line["µs"] < 1e7 and line["share"] > 0 and line["stock µs"] > 0 for line in timed)
    names = [(line["name"], line["precision"]) for line in timed]
    assert len(set(names)) == len(names)
    for product in ("cross-entropy and its gradient", "linear with LoRA", "attention, gradient"):
        assert {(product, "fp32"), (product, "bf16")} <= {*names}
    assert {"GELU, gradient", "AdamW", "rotary", "label rows", "RMS norm"} <= {name for name, _ in names}
    assert len(capsys.readouterr().out.splitlines()) == len(lines) + 2


def test_unknown_groups_are_refused(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cuda_kernels.py", "--output", str(tmp_path / "x"), "--groups", "norms,dreams"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--groups: expected some of norms, " in capsys.readouterr().err
