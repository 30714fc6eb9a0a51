"""Full fine-tuning from the command line: run, resume, evaluate the result."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.training.optimizer import AdamW


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run.make_files(tmp_path_factory.mktemp("full"), 6, 2)


def train(folder, output, *more):
    return main(["train", "--method", "full", "--base", str(folder / "base"), "--data", str(folder / "train.json"),
                 "--output", str(folder / output), "--learning-rate", "1e-3", "--batch-size", "4", *more])


def test_a_run_that_is_resumed_ends_with_the_same_model(folder, monkeypatch):
    assert train(folder, "whole", "--max-steps", "6", "--dev", str(folder / "dev.json"), "--eval-every", "2") == 0
    monkeypatch.setattr(AdamW, "step", interrupted_after(3, AdamW.step))
    assert train(folder, "parts", "--max-steps", "6", "--dev", str(folder / "dev.json"), "--eval-every", "2") == 130
    monkeypatch.undo()
    assert main(["train", "--output", str(folder / "parts"), "--resume"]) == 0
    whole, parts = (read_checkpoint(folder / name / "model") for name in ("whole", "parts"))
    base = read_checkpoint(folder / "base")
    assert sorted(whole.tensors) == sorted(base.tensors)
    for name in whole.tensors:
        assert np.array_equal(whole.tensors[name], parts.tensors[name]), name
        assert not np.array_equal(whole.tensors[name], base.tensors[name]), name
    assert (folder / "whole" / "best" / "model.safetensors").is_file() and not (folder / "whole" / "adapter").exists()
    summary = json.loads((folder / "whole" / "summary.json").read_text())
    assert summary["trainable_parameters"] == sum(array.size for array in base.tensors.values())
    losses = [float(line) for line in (folder / "whole" / "train_loss.txt").read_text().splitlines()]
    assert losses[-1] < losses[0]


def interrupted_after(steps, inner):
    """An optimiser's step, with Ctrl-C during one of them."""
    def step(self, *arguments):
        inner(self, *arguments)
        if self.steps == steps:
            signal.raise_signal(signal.SIGINT)

    return step


def test_the_result_is_a_base(folder):
    output = folder / "evaluation"
    assert main(["evaluate", "--base", str(folder / "whole" / "model"), "--data", str(folder / "dev.json"), "--output",
                 str(output), "--max-new-tokens", "4"]) == 0
    assert len(json.loads((output / "predictions.json").read_text())) == 4


@pytest.mark.parametrize("more, expected", [
    (("--lora-r", "4"), "--lora-r"), (("--precision", "bf16"), "full trains in float32"),
    (("--target-modules", "c_attn"), "applies to adapters"),
])
def test_settings_of_adapters_are_refused(folder, capsys, more, expected):
    assert train(folder, "refused", "--max-steps", "1", *more) == 2
    assert expected in capsys.readouterr().err
