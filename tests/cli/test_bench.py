"""`bench` on a tiny base, without peers."""

from __future__ import annotations

import json

import small_run
from jittor_lora.benchmark import tools
from jittor_lora.cli.main import main


def test_measurements_and_tables_are_written(tmp_path, capsys):
    base = small_run.make_base(tmp_path / "base")
    output = tmp_path / "bench"
    assert main(["bench", "--base", str(base), "--parts", "squad,memory", "--precisions", "fp32", "--no-peers",
                 "--questions", "32", "--memory-steps", "3", "--threads", "1", "--repeats", "2", "--warmups", "1",
                 "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == (output / "bench.md").read_text().strip()
    report = json.loads((output / "bench.json").read_text())
    squad, memory = report["results"]
    [ours] = squad["contenders"]
    assert len(ours["warmups"]) == 1 and len(ours["runs"]) == 2, (output / "workers.log").read_text()
    assert all(run["seconds"] > 0 and run["cpu_seconds"] > 0 and run["peak_mib"] >= run["rss_mib"] > 10
               for run in ours["runs"])
    assert squad["units"] == 32 and ours["check"]["loss"] > 0
    assert len(memory["contenders"][0]["check"]) == 3
    assert "**jittor-lora**" in printed.out and "MiB after step" in printed.out


def test_a_damaged_base_is_named_before_anything_is_measured(tmp_path, capsys):
    base = small_run.make_base(tmp_path / "base")
    next(base.glob("*.safetensors")).write_bytes(b"no weights")
    code = main(["bench", "--base", str(base), "--parts", "gemm", "--no-peers", "--output", str(tmp_path / "bench")])
    assert code == 2
    assert "safetensors" in capsys.readouterr().err


def test_unknown_parts_are_refused(capsys):
    assert main(["bench", "--parts", "stap,squad", "--precisions", ",", "--output", "x"]) == 2
    message = capsys.readouterr().err
    assert "found stap; did you mean step?" in message and "fp32, bf16, found none" in message


def test_peers_that_are_asked_for_must_be_installed(monkeypatch, capsys):
    monkeypatch.setattr(tools.Tool, "missing", lambda tool: list(tool.packages.values()))
    assert main(["bench", "--parts", "gemm", "--peers", "--tools", "llama.cpp,mlx-lm", "--output", "x"]) == 2
    assert "`pip install llama-cpp-python mlx mlx-lm`" in capsys.readouterr().err
