"""`curve` on a small base: every point once, gone on with, refused with other settings."""

from __future__ import annotations

import json

import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.settings.curve import CurveConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run.make_files(tmp_path_factory.mktemp("curve"), 8, 3)


def curve(folder, output, *more):
    return main(["curve", "--base", str(folder / "base"), "--data", str(folder / "train.json"), "--dev",
                 str(folder / "dev.json"), "--output", str(folder / output), "--min-steps", "3", "--lora-r", "2",
                 "--lora-dropout", "0", "--batch-size", "4", *more])


def test_examples(folder, capsys, monkeypatch):
    assert curve(folder, "examples", "--points", "2,all") == 0
    out = capsys.readouterr().out
    assert out.startswith("examples") and "6 questions" in out
    found = json.loads((folder / "examples/curve.json").read_text())
    assert [(p["value"], p["steps"]) for p in found["points"]] == [(2, 3), (16, 4)]
    assert found["base"]["count"] == 6 and all(0 <= p["metrics"]["f1"] <= 100 for p in found["points"])
    assert (folder / "examples/curve.md").read_text().count("\n| ") == 3
    assert (folder / "examples/curve.png").stat().st_size > 10_000 and (folder / "examples/curve.svg").is_file()

    # Nothing is done again; a point more is done alone.
    from jittor_lora.tasks import curve as task
    trained, train = [], task.train
    monkeypatch.setattr(task, "train", lambda run, *rest: trained.append(run.max_train) or train(run, *rest))
    monkeypatch.setattr(task, "score_and_write", None)
    assert curve(folder, "examples", "--points", "2,all") == 0 and trained == []
    monkeypatch.undo()
    monkeypatch.setattr(task, "train", lambda run, *rest: trained.append(run.max_train) or train(run, *rest))
    assert curve(folder, "examples", "--points", "2,6,all", "--extractive") == 0 and trained == [6]
    assert (folder / "examples/examples-6/evaluation/extractive/spans.jsonl").is_file()


def test_spans_that_were_not_freed_from_smoothed_labels_are_found_again(folder):
    arguments = folder, "smoothed", "--points", "2,4", "--extractive", "--label-smoothing", "0.1"
    assert curve(*arguments) == 0
    answers = [folder / f"smoothed/examples-{count}/evaluation/extractive" for count in (2, 4)]
    for path in (*answers, folder / "smoothed/base/extractive"):
        spans = json.loads((path / "predictions.json").read_text())
        (path / "predictions.json").write_text(json.dumps(dict.fromkeys(spans, "kept")))
    metrics = json.loads((answers[0] / "metrics.json").read_text())
    assert metrics.pop("label_smoothing") == 0.1
    (answers[0] / "metrics.json").write_text(json.dumps(metrics))
    assert curve(*arguments) == 0
    kept = ["kept" in json.loads((path / "predictions.json").read_text()).values()
            for path in (*answers, folder / "smoothed/base/extractive")]
    assert kept == [False, True, True]


def test_one_model_at_a_time(folder, monkeypatch):
    """The numbers that are held when a point begins are not more for the points before it."""
    from jittor_lora.system.runtime import jt
    from jittor_lora.tasks import curve as task
    held, trained = [], task.trained
    monkeypatch.setattr(task, "trained", lambda run: held.append(jt.number_of_hold_vars()) or trained(run))
    assert curve(folder, "memory", "--points", "2,4,6") == 0
    assert held[0] == held[1] == held[2]


@pytest.fixture(scope="module")
def ranks(folder):
    assert curve(folder, "ranks", "--over", "rank", "--points", "1,4", "--max-steps", "2", "--alpha-ratio", "2") == 0


def test_ranks(folder, ranks):
    found = json.loads((folder / "ranks/curve.json").read_text())
    assert found["points"][1]["trainable_parameters"] == 4 * found["points"][0]["trainable_parameters"]
    settings = json.loads((folder / "ranks/rank-4/adapter/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)


def test_seeds(folder, capsys):
    assert curve(folder, "seeds", "--over", "seed", "--points", "7,3", "--max-steps", "2") == 0
    found = json.loads((folder / "seeds/curve.json").read_text())
    assert [point["value"] for point in found["points"]] == [3, 7]
    assert "seed: 3" in (folder / "seeds/seed-3/config.yaml").read_text()
    scores = [point["metrics"]["f1"] for point in found["points"]]
    assert found["mean"]["f1"]["mean"] == pytest.approx(sum(scores) / 2) and found["mean"]["f1"]["count"] == 2
    out = capsys.readouterr().out
    assert "mean of 2" in out and "for new seeds on the same questions" in out
    assert "| mean of 2 |" in (folder / "seeds/curve.md").read_text()


def test_points_of_other_settings_are_refused(folder, ranks, capsys):
    assert curve(folder, "ranks", "--over", "rank", "--points", "1,4", "--max-steps", "3", "--alpha-ratio", "2") == 2
    err = capsys.readouterr().err
    assert "rank-1: max_steps" in err and "rank-4: max_steps" in err


def test_a_picture_that_cannot_be_drawn_is_said_before_anything_runs(folder, capsys):
    assert curve(folder, "font", "--language", "zh", "--font", str(folder / "none.ttf")) == 2
    assert "none.ttf" in capsys.readouterr().err and not (folder / "font/base").exists()


@pytest.mark.parametrize("settings, expected", [
    ({"points": "0,4"}, "whole numbers above 0"), ({"points": "4,4"}, "distinct"),
    ({"over": "rank", "points": "all"}, "a rank is a number"), ({"over": "rank", "method": "full"}, "no rank"),
    ({"alpha_ratio": 2}, "applies to ranks only"),
    ({"over": "seed", "points": "all"}, "a seed is a number"),
    ({"over": "seed", "alpha_ratio": 2}, "applies to ranks only"),
])
def test_settings_that_make_no_sense(settings, expected):
    with pytest.raises(UserError, match=expected):
        CurveConfig.resolve(None, {"data": "a", "dev": "b", "output": "c", **settings})


def test_values():
    assert CurveConfig().values(500) == [16, 64, 256, 500]
    assert CurveConfig(over="rank").values(500) == [1, 2, 4, 8, 16, 32, 64]
    assert CurveConfig(over="seed").values(500) == [1, 2, 3]
