"""benchmarks/soak.py: its definition of growth, and a short run."""

from __future__ import annotations

import json

import pytest

from programs import load_program


@pytest.fixture(scope="module")
def soak():
    return load_program("benchmarks/soak.py")


def run(memory=lambda step: 500.0, files=lambda step: 9, threads=lambda step: 5, cpu=lambda step: 0.2 * step):
    """Samples and rows of 400 steps; memory, files, threads and CPU time by step."""
    samples = [{"seconds": 0.1 * step, "step": step, "rss_mib": memory(step), "files": files(step),
                "threads": threads(step), "cpu_seconds": cpu(step)} for step in range(0, 401, 2)]
    return samples, [{"step": step, "tokens": 100 + step % 3, "seconds": 0.1} for step in range(1, 401)]


def growing(found):
    return {name for name, part in found.items() if isinstance(part, dict) and not part["flat"]}


@pytest.mark.parametrize("grows, changes", [
    (set(), {}),
    (set(), {"memory": lambda step: min(500.0, 50 + 10 * step)}),  # full size after 45 steps
    (set(), {"memory": lambda step: 500 + 15 * (step % 20 == 0)}),
    (set(), {"files": lambda step: 9 + (step % 50 == 0)}),
    ({"memory"}, {"memory": lambda step: 500 + 0.1 * step}),
    ({"files"}, {"files": lambda step: 9 + step // 200}),
    ({"threads"}, {"threads": lambda step: 5 + (step > 290)}),
    ({"speed"}, {"cpu": lambda step: 0.2 * step + 0.0001 * step**2}),
], ids=["flat", "warm", "peaks", "checkpoints", "memory", "files", "threads", "speed"])
def test_growth_is_found(soak, grows, changes):
    assert growing(soak.verdict(*run(**changes))) == grows


def test_a_long_start_is_not_growth(soak):
    samples, rows = run()
    starting = {**samples[0], "step": 0, "files": 3, "threads": 1}
    assert growing(soak.verdict([starting] * 500 + samples[1:], rows)) == set()


def test_figures(soak):
    found = soak.verdict(*run(memory=lambda step: 500 + 0.1 * step))
    assert found["memory"]["mib_per_1000_steps"] == pytest.approx(100, rel=1e-6)
    assert found["memory"]["growth"] == pytest.approx(0.1 * 200 / 530, rel=1e-3)
    assert found["speed"]["tokens_per_second"] == pytest.approx([1010, 1010], rel=1e-3)
    assert found["speed"]["processor_ms_per_token"] == pytest.approx([0.2 / 101 * 1000] * 2, rel=0.02)
    assert soak.lines(found)[0].startswith("memory: GROWS: 520 MiB after half of the steps, 540 at the end")


@pytest.mark.slow
def test_a_short_run(soak, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["soak.py", "--output", str(tmp_path), "--picture", str(tmp_path / "soak.png"),
                                     "--steps", "100", "--seconds", "0.1"])
    soak.main()
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["verdict"]["files"]["flat"] and found["verdict"]["threads"]["flat"]
    assert len(found["steps"]) == 100 and len({sample["step"] for sample in found["samples"]}) > 10
    assert found["verdict"]["memory"]["growth"] < 0.2  # buffers may still grow with the longest texts
    assert "files: flat" in capsys.readouterr().out and (tmp_path / "soak.png").read_bytes()[:4] == b"\x89PNG"
