"""benchmarks/small_memory.py on tiny models: it measures, and removes what it made."""

from __future__ import annotations

import json
import sys

import pytest

from jittor_lora.benchmark.base import GPT2
from jittor_lora.formats.bases import cache_folder
from programs import load_program


@pytest.mark.slow
def test_it_measures_and_cleans_up(tmp_path, monkeypatch, capsys):
    program = load_program("benchmarks/small_memory.py")
    tiny = {**GPT2, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 1024}
    monkeypatch.setattr(program, "MODELS", {"tiny": tiny})
    monkeypatch.setattr(sys, "argv", ["small_memory.py", "--output", str(tmp_path), "--base-precisions", "q4",
                                      "--steps", "2"])
    program.main()
    (result,) = json.loads((tmp_path / "small-memory.json").read_text())
    assert 50 < result["training"]["peak_mib"] < 2000 and result["seconds_per_step"] > 0 and result["loss"] > 0
    assert 4 * 240 < result["tokens"] <= 4 * 256
    assert "| tiny | q4 |" in capsys.readouterr().out
    assert not list((tmp_path / "small-memory-tiny").iterdir())
    assert not list((cache_folder() / "quantised").glob("small-memory-tiny-*"))
