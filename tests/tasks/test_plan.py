"""A plan: what it counts is what the run does, what it measures fits together, and it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import tempfile

import pytest

import model_files
import small_run
import tiny
from jittor_lora.cli.main import main
from jittor_lora.data.stream import build_stream
from jittor_lora.errors import UserError
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.plan import Change, Plan, plan
from jittor_lora.tasks.plan_report import table
from jittor_lora.tasks.plan_trial import Line, Trial
from jittor_lora.tasks.plan_work import work_of
from jittor_lora.tasks.train import prepare, train

MIB = 1 << 20
LARGER = {**model_files.GPT2, "n_positions": 256, "n_embd": 384, "n_layer": 6, "n_head": 6, "bos_token_id": 299,
          "eos_token_id": 299}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = small_run.make_files(tmp_path_factory.mktemp("plan"), 12, 3)
    small_run.add_answers(folder / "train.json")
    return folder


def settings(folder, **changes):
    return RunConfig(**{"base": str(folder / "base"), "data": str(folder / "train.json"), "batch_size": 3, "lora_r": 2,
                        "precision": "fp32", **changes})


def files(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("changes", [
    {}, {"batch_size": 5, "max_steps": 3}, {"share_prefixes": False}, {"gradient_accumulation": 2},
    {"max_tokens_per_stream": 96}, {"whole_paragraphs": False, "max_train": 7}, {"lora_dropout": 0.5, "batch_size": 24},
    {"references": "all"}, {"references": "sampled", "share_prefixes": False}, {"references": "all", "batch_size": 24},
])
def test_steps_and_tokens_are_those_of_the_run(made, tmp_path, changes):
    found = plan(settings(made, **changes))
    train(settings(made, output=str(tmp_path / "run"), **changes))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found.steps == len(rows)
    assert found.tokens == sum(row["tokens"] for row in rows)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found.examples == summary["training_examples"]


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("changes", [{}, {"epochs": 3.0}, {"max_steps": 50}, {"epochs": 0.4}])
def test_scored_tokens_and_the_longest_stream(weight, changes):
    groups = tiny.groups(20, branches=4)
    config = RunConfig(prompt_loss_weight=weight, batch_size=4, max_tokens_per_stream=30, **changes)
    work = work_of(groups, groups[:3], config)
    whole = build_stream(groups, weight)
    epochs = work.steps / len(work_of(groups, [], RunConfig(batch_size=4)).counted)
    assert work.labels == pytest.approx(epochs * len(whole.labels), rel=0.25)
    assert work.rows >= 0.75 * epochs * len(whole.tokens)
    assert work.dev_rows == len(build_stream(groups[:3]).tokens)
    assert work.longest.rows == max(piece.rows for piece in work.pieces) <= 30


def test_large_data_is_counted_in_part(monkeypatch):
    groups = tiny.groups(200)
    exact = work_of(groups, [], RunConfig(batch_size=2))
    monkeypatch.setattr("jittor_lora.tasks.plan_work.MOST_STEPS", 25)
    part = work_of(groups, [], RunConfig(batch_size=2))
    assert len(part.counted) < 60 < len(exact.counted)
    assert part.rows == pytest.approx(exact.rows, rel=0.15)
    assert part.steps == exact.steps


@pytest.mark.parametrize("changes", [
    {"dev": "dev.json", "eval_every": 2, "eval_questions": 4, "save_every": 3}, {"method": "full"},
    {"lora_init": "pissa", "activation_checkpointing": True}, {"batch_size": 1, "max_steps": 1, "max_train": 1}])
def test_it_leaves_nothing(made, tmp_path, changes, monkeypatch):
    changes = {name: str(made / value) if name == "dev" else value for name, value in changes.items()}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = files(made), files(tmp_path)
    found = plan(settings(made, output=str(tmp_path / "run"), **changes))
    assert (files(made), files(tmp_path)) == before
    assert found.fits and found.changes == ()
    assert found.seconds == pytest.approx(sum(found.seconds_by.values())) and found.seconds > 0
    assert found.steps_measured >= 2 and found.tokens_per_second > 0
    assert found.memory_measured and found.memory > 0 and found.disk < found.disk_free
    assert (found.seconds_by["validation"] > 0) == (found.validations > 0) == ("dev" in changes)


def test_validations_and_checkpoints_are_those_of_the_run(made, tmp_path):
    config = settings(made, dev=str(made / "dev.json"), eval_every=3, save_every=3, keep_checkpoints=100,
                      output=str(tmp_path / "run"))
    found = plan(config)
    train(config)
    assert found.validations == len((tmp_path / "run" / "val_loss.txt").read_text().splitlines())
    checkpoints = list((tmp_path / "run" / "checkpoints").iterdir())
    assert found.checkpoints == len(checkpoints)
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    assert found.disk == pytest.approx(size, rel=0.6)


def test_the_steps_leave_the_adapter_as_it_is(made):
    ready = prepare(settings(made, lora_dropout=0.3))
    before = {name: p.numpy().copy() for name, p in ready.method.trainable.parameters().items()}
    Trial(ready, work_of(ready.groups, [], ready.config)).steps()
    assert all((before[name] == p.numpy()).all() for name, p in ready.method.trainable.parameters().items())


@pytest.mark.parametrize(("small", "larger", "rows", "expected"), [
    ((100, 2000), (300, 4000), 600, 7000), ((100, 2000), (300, 4000), 0, 1000),  # a slope of 10 from 1,000
    ((1053, 72 * MIB), (1064, 74 * MIB), 1064, 74 * MIB),  # 2 MiB of noise in 11 rows are no slope
    ((1053, 72 * MIB), (1064, 74 * MIB), 2128, 148 * MIB), ((1053, 74 * MIB), (1064, 72 * MIB), 2128, 144 * MIB),
    ((100, 500), (200, 2000), 400, 4000),  # never less than nothing for no rows
    ((100, 2000), (200, 1000), 400, 1000), ((80, 800), (80, 800), 160, 1600)])
def test_memory_by_rows_from_two_streams(small, larger, rows, expected):
    line = Line.through(small, larger)
    assert line.at(rows) == pytest.approx(expected, abs=1) and line.at(larger[0]) == pytest.approx(larger[1], abs=1)
    assert line.start >= 0 and line.per_row >= 0


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("larger")
    small_run.make_base(folder / "base", LARGER)
    small_run.make_squad(folder / "train.json", 20)
    return folder


@pytest.mark.slow
def test_where_memory_does_not_suffice_the_changes_do(larger):
    config = settings(larger, batch_size=20, max_tokens_per_stream=2048)
    usual = plan(config)
    assert usual.memory_by["activations"] > 60 * MIB
    parts = usual.memory_by
    available = round((parts["base"] + parts["trained"] + 0.4 * parts["activations"]) / 0.95)
    short = plan(config, available)
    assert not short.fits and not short.memory_measured and "estimated" in table(short)
    assert short.memory_by["activations"] == pytest.approx(usual.memory_by["activations"], rel=0.3)
    assert {tuple(change.settings) for change in short.changes} >= {("max_tokens_per_stream",)}
    for change in short.changes:
        assert change.memory <= available
        tried = plan(config.model_copy(update=dict(change.settings)), usual.memory_available)
        assert tried.memory_by["activations"] < 0.6 * usual.memory_by["activations"]
        assert abs(tried.memory - change.memory) < 0.3 * usual.memory_by["activations"] + 40 * MIB


def test_weights_that_do_not_fit_are_not_loaded(made):
    with pytest.raises(UserError, match="its weights alone take"):
        plan(settings(made), available=1000)


def test_on_the_command_line(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["train", "--base", str(made / "base"), "--data", str(made / "train.json"), "--plan"]
    assert main(data) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()] == [
        "data", "steps", "precision", "threads", "time", "memory", "disk", "It"]
    assert "24 examples" in shown and shown.endswith("It fits. Nothing was trained or written.\n")
    assert main([*data, "--json", "--output", "run"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "message"), [
    (["--plan", "--resume"], "not allowed with argument"), (["--plan", "--overwrite"], "not allowed with argument"),
    (["--json"], "--json: prints a plan"), (["--plan"], "--data"), (["--plan", "--data", "none.json"], "none.json")])
def test_mistakes_on_the_command_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_it_says_what_to_change():
    found = Plan(examples=1, longest_example=1, steps=1, tokens=1, scored_tokens=1, longest_stream=1, precision="fp32",
                 precision_wanted="bf16", threads=1, seconds=3700.0,
                 seconds_by={"start": 1.0, "steps": 3699.0, "validation": 0.0, "saving": 0.0}, tokens_per_second=1.0,
                 steps_measured=2, validations=0, checkpoints=1, memory=3 << 30,
                 memory_by={"base": 1, "trained": 1, "activations": 1}, memory_measured=False, memory_available=2 << 30,
                 disk=1, disk_free=2, fits=False,
                 changes=[Change({"activation_checkpointing": True, "max_tokens_per_stream": 256}, 1 << 30, 1.34)])
    text = table(found)
    assert "fp32, as this machine does not compute in bf16" in text and "1:01:40" in text
    assert "  --activation-checkpointing --max-tokens-per-stream 256: about 1.0 GiB, 1.3 times the time" in text
    assert "take a smaller base" in table(dataclasses.replace(found, changes=()))
    assert "does not fit on the disk" in table(dataclasses.replace(found, disk=3))
