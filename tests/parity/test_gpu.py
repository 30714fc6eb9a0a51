"""The parts of benchmarks/gpu.sh with torch, on the CPU with tiny models."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def part(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return lambda name: importlib.import_module(f"gpu_{name}")


@pytest.fixture
def bases(tmp_path, part):
    part("bases").write(tmp_path / "bases", tiny=True)
    return tmp_path / "bases"


def lines(part, folder):
    return list(part("results").read(folder / "results.jsonl"))


@pytest.mark.parametrize("kind, base, precision", [
    ("training", "gpt2", "fp32"), ("decoding", "smollm2", "fp32"),
    ("compiled-decoding", "gpt2", "fp32")])
def test_peers_take_part_and_agree(tmp_path, part, bases, kind, base, precision):
    part("speed").main([kind, base, precision, "--bases", str(bases), "--output", str(tmp_path), "--device", "cpu",
                        "--threads", "1", "--tiny"])
    for line in lines(part, tmp_path):
        for record in line["contenders"]:
            assert "error" not in record and record["runs"], record
        ours, theirs = (record["check"] for record in line["contenders"])
        if "sampled" in line["workload"]:
            assert ours is theirs is None
        else:
            assert ours == (theirs if "decod" in kind else pytest.approx(theirs, rel=1e-4))


@pytest.mark.slow
def test_bf16_of_peers_as_weights_and_by_autocast(tmp_path, part, bases):
    part("speed").main(["steps", "gpt2", "bf16", "--bases", str(bases), "--output", str(tmp_path), "--device", "cpu",
                        "--threads", "1", "--tiny"])
    for line in lines(part, tmp_path):
        _, autocast, weights = (record["check"] for record in line["contenders"])
        assert autocast == pytest.approx(weights, rel=3e-2) and autocast != weights


@pytest.mark.parametrize("side", ["ours", "peers"])
def test_a_profile(tmp_path, part, bases, side):
    part("profile").main([side, "gpt2", "fp32", "--bases", str(bases), "--output", str(tmp_path), "--device", "cpu",
                          "--tiny"])
    [line] = lines(part, tmp_path)
    assert line["side"] == side and line["step_ms"] > 0
    assert (line["launches"] > 100 and line["kernels"][0]["ms"] > 0) if side == "peers" else line["launches"] == 0
