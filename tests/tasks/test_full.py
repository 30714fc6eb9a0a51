"""Full fine-tuning from the command line: run, resume, evaluate the result."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.system.runtime import set_threads, threads
from jittor_lora.training.optimizer import AdamW
from needs import PRECISIONS, needs_kernels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run.make_files(tmp_path_factory.mktemp("full"), 6, 2)


def train(folder, output, *more):
    return main(["train", "--method", "full", "--base", str(folder / "base"), "--data", str(folder / "train.json"),
                 "--output", str(folder / output), "--learning-rate", "1e-3", "--batch-size", "4", *more])


@pytest.fixture(scope="module")
def whole(folder):
    """A finished run."""
    assert train(folder, "whole", "--max-steps", "6", "--dev", str(folder / "dev.json"), "--eval-every", "2") == 0
    return folder / "whole"


def test_a_run_that_is_resumed_ends_with_the_same_model(folder, whole, monkeypatch):
    monkeypatch.setattr(AdamW, "step", interrupted_after(3, AdamW.step))
    assert train(folder, "parts", "--max-steps", "6", "--dev", str(folder / "dev.json"), "--eval-every", "2") == 130
    monkeypatch.undo()
    assert main(["train", "--output", str(folder / "parts"), "--resume"]) == 0
    trained, parts, base = (read_checkpoint(path) for path in
                            (whole / "model", folder / "parts" / "model", folder / "base"))
    assert sorted(trained.tensors) == sorted(base.tensors)
    for name in trained.tensors:
        assert np.array_equal(trained.tensors[name], parts.tensors[name]), name
        assert not np.array_equal(trained.tensors[name], base.tensors[name]), name
    assert (whole / "best" / "model.safetensors").is_file() and not (whole / "adapter").exists()
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["trainable_parameters"] == sum(array.size for array in base.tensors.values())
    losses = [float(line) for line in (whole / "train_loss.txt").read_text().splitlines()]
    assert losses[-1] < losses[0]


@needs_kernels
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_may_be_resumed_on_another_number_of_threads(folder, monkeypatch, precision):
    before, how = threads(), ("--max-steps", "6", "--precision", precision)
    try:
        assert train(folder, f"{precision}-whole", *how, "--threads", "1") == 0
        monkeypatch.setattr(AdamW, "step", interrupted_after(3, AdamW.step))
        assert train(folder, f"{precision}-parts", *how, "--threads", "1") == 130
        monkeypatch.undo()
        assert main(["train", "--output", str(folder / f"{precision}-parts"), "--resume", "--threads", "3"]) == 0
        assert threads() == 3
    finally:
        set_threads(before)
    one, other = ((folder / f"{precision}-{name}" / "model" / "model.safetensors").read_bytes()
                  for name in ("whole", "parts"))
    assert one == other


def interrupted_after(steps, inner):
    """An optimiser's step, with Ctrl-C during one of them."""
    def step(self, *arguments):
        inner(self, *arguments)
        if self.steps == steps:
            signal.raise_signal(signal.SIGINT)

    return step


def test_the_result_is_a_base(folder, whole):
    output = folder / "evaluation"
    assert main(["evaluate", "--base", str(whole / "model"), "--data", str(folder / "dev.json"), "--output",
                 str(output), "--max-new-tokens", "4"]) == 0
    assert len(json.loads((output / "predictions.json").read_text())) == 4


@pytest.mark.parametrize("more, expected", [
    (("--lora-r", "4"), "--lora-r"), (("--target-modules", "c_attn"), "applies to adapters"),
])
def test_settings_of_adapters_are_refused(folder, capsys, more, expected):
    assert train(folder, "refused", "--max-steps", "1", *more) == 2
    assert expected in capsys.readouterr().err
