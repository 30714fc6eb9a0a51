"""What `train` decides before anything heavy is imported: settings, and what to do with a run that is there."""

from __future__ import annotations

import signal
import sys
import types

import pytest
import yaml

from jittor_lora.cli.main import main
from jittor_lora.errors import Stopped
from jittor_lora.settings.run import RunConfig


@pytest.fixture
def calls(monkeypatch):
    """(config, resume) of each call of the training."""
    calls = []
    module = types.ModuleType("jittor_lora.tasks.train")
    module.train = lambda config, resume: calls.append((config, resume)) or {"ended": "finished"}
    monkeypatch.setitem(sys.modules, "jittor_lora.tasks.train", module)
    return calls


@pytest.fixture
def run_folder(tmp_path):
    """A run folder as a training leaves it, of 7 steps with a rank of 4."""
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    config = RunConfig(base="b", data="d", output=str(folder), lora_r=4, max_steps=7)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "mine.txt").write_text("")
    (folder / "plots").mkdir()
    return folder


def test_settings_reach_the_training(calls, tmp_path):
    assert main(["train", "--base", "b", "--data", "d", "--output", str(tmp_path / "run"), "--config", "reference",
                 "--max-train", "10", "--max-steps", "5", "--seed", "7"]) == 0
    (config, resume), = calls
    assert (config.base, config.data, config.max_train, config.max_steps, config.seed) == ("b", "d", 10, 5, 7)
    assert config.lora_init == "gaussian" and config.epochs is None and not resume


def test_data_and_output_are_needed(calls, capsys):
    assert main(["train", "--base", "b"]) == 2
    err = capsys.readouterr().err
    assert "--data" in err and "--output" in err and not calls


def test_a_run_is_not_written_over(calls, run_folder, capsys):
    assert main(["train", "--data", "d", "--output", str(run_folder)]) == 2
    err = capsys.readouterr().err
    assert "already holds a run (adapter, config.yaml, metrics.jsonl)" in err and "--overwrite" in err and not calls


def test_overwrite_removes_the_run_and_nothing_else(calls, run_folder):
    assert main(["train", "--data", "d", "--output", str(run_folder), "--overwrite"]) == 0
    assert [path.name for path in run_folder.iterdir()] == ["mine.txt"] and len(calls) == 1


def test_overwrite_removes_nothing_if_a_setting_is_wrong(calls, run_folder):
    assert main(["train", "--data", "d", "--output", str(run_folder), "--overwrite", "--lora-r", "0"]) == 2
    assert (run_folder / "adapter").exists() and not calls


def test_resume_takes_the_settings_of_the_run(calls, run_folder):
    assert main(["train", "--output", str(run_folder), "--resume", "--save-every", "3"]) == 0
    (config, resume), = calls
    assert resume and (config.lora_r, config.max_steps, config.data, config.save_every) == (4, 7, "d", 3)


def test_resume_with_the_same_command_line(calls, run_folder):
    assert main(["train", "--base", "b", "--data", "d", "--output", str(run_folder), "--lora-r", "4",
                 "--max-steps", "7", "--resume"]) == 0
    assert calls[0][1]


def test_resume_refuses_other_settings(calls, run_folder, capsys):
    assert main(["train", "--output", str(run_folder), "--resume", "--lora-r", "8", "--epochs", "2"]) == 2
    err = capsys.readouterr().err
    assert "lora_r (--lora-r): 4 in the run, now 8" in err and "epochs (--epochs): None in the run, now 2.0" in err
    assert not calls


def test_resume_without_a_run_starts_one_and_says_so(calls, tmp_path, capsys):
    assert main(["train", "--data", "d", "--output", str(tmp_path / "new"), "--resume"]) == 0
    assert "contains no run yet" in capsys.readouterr().err and not calls[0][1]


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted(calls, monkeypatch, tmp_path, saved, number, code, capsys):
    def train(config, resume):
        if saved:
            return {"ended": "interrupted", "signal": number}
        raise Stopped(number)
    monkeypatch.setattr(sys.modules["jittor_lora.tasks.train"], "train", train)
    assert main(["train", "--data", "d", "--output", str(tmp_path / "run")]) == code
    assert "run the same command with --resume" in capsys.readouterr().err


def test_output_that_is_a_file(calls, tmp_path, capsys):
    (tmp_path / "f").write_text("")
    assert main(["train", "--data", "d", "--output", str(tmp_path / "f")]) == 2
    assert "found a file" in capsys.readouterr().err and not calls
