"""A loss or gradient that is not finite: reported within the step, left out or a stop, and never in a file."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpi
import small_run
import tiny
from jittor_lora import ops
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.evaluation.loss_logs import read_run_losses
from jittor_lora.formats.training_state import checkpoints, read_state
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.tasks import train as task
from jittor_lora.training import gradients
from jittor_lora.training.batches import steps_from
from jittor_lora.training.log import RunLog
from jittor_lora.training.loop import train
from jittor_lora.training.optimizer import AdamW
from jittor_lora.training.progress import Progress
from jittor_lora.training.schedule import learning_rate
from needs import needs_bf16, needs_mpi

GROUPS = tiny.groups(5)
QUESTIONS = [branch.id for group in GROUPS for branch in group.branches]
BAD = QUESTIONS[3]
LOSS_IS_WRONG = "loss nan, first wrong in the output head or the loss, gradient not finite in "


def settings(**changes):
    return RunConfig(**{"max_steps": 6, "batch_size": 5, "lora_dropout": 0.2, "learning_rate": 0.01, "save_every": 1,
                        "max_tokens_per_stream": 16, "seed": 3, **changes})


class Run:
    """A run of a tiny network in memory, with its state after each step."""

    def __init__(self, folder, spoil=lambda tensors: None, family="gpt2", precision="fp32", arrays=None, dev=(),
                 **changes):
        """
        Args:
            precision: "fp32", "bf16", or "portable" for fp32 by Jittor's own operators.
        """
        config, source = settings(**changes), tiny.VARIANTS[family]
        tensors = tiny.tensors(source)
        spoil(tensors)
        self.folder, self.progress, self.best, self.states = folder, Progress(), [], {}
        model = build_model(tiny.config(source), tensors, "bf16" if precision == "bf16" else "fp32")
        self.adapter = inject(model, LoraConfig(r=2, alpha=4.0, dropout=0.2, target_modules=DEFAULT_TARGETS[family]))
        self.adapter.load({**tiny.adapter_arrays({name: tuple(p.shape) for name, p in
                                                  self.adapter.parameters().items()}), **(arrays or {})})
        self.start, self.optimizer = self.state(), AdamW(self.adapter.parameters())
        self.names, self.error = list(self.adapter.parameters()), None
        try:
            with RunLog(folder, quiet=True) as log, \
                    ops.portable_operations() if precision == "portable" else contextlib.nullcontext():
                train(model, self.adapter, GROUPS, dev, config, log, self.optimizer, self.progress,
                      lambda progress: self.states.update({progress.step: self.state()}),
                      lambda progress: self.best.append(progress.step))
        except UserError as error:
            self.error = str(error)

    def state(self):
        moments = self.optimizer.state() if hasattr(self, "optimizer") else {}
        return {name: array.tobytes() for name, array in
                {**{name: p.numpy() for name, p in self.adapter.parameters().items()}, **moments}.items()}

    @property
    def rows(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def put(name, value, place=(3,)):
    """A function that puts a value into a weight of the base."""
    return lambda tensors: tensors[name].__setitem__(place, value)


@pytest.fixture
def spoiled(monkeypatch):
    """A function that multiplies the loss of every stream with this question, or of all streams, by a number."""
    inner = gradients.stream_loss

    def spoil(factor, question=None):
        def stream_loss(model, stream, smoothing=0.0):
            return inner(model, stream, smoothing) * (factor if question in (None, *stream.ids) else 1.0)

        monkeypatch.setattr(gradients, "stream_loss", stream_loss)

    return spoil


# --- what is reported ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "portable", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("family, name, place, where", [
    ("gpt2", "transformer.h.1.ln_2.weight", (3,), "block 1 (of 0 to 1) or the last norm"),
    ("gpt2", "transformer.h.0.mlp.c_fc.weight", (2, 5), "block 0 (of 0 to 1)"),
    ("gpt2", "transformer.wpe.weight", (2, 5), "the embeddings"),
    ("llama", "model.layers.1.self_attn.v_proj.weight", (1, 4), "block 1 (of 0 to 1) or the last norm"),
    ("llama", "model.norm.weight", (0,), "block 1 (of 0 to 1) or the last norm")])
def test_a_base_whose_numbers_go_wrong(tmp_path, family, name, place, where, value, precision):
    run = Run(tmp_path, put(name, value, place), family, precision)
    assert run.error.startswith("step 1: the loss is nan and the gradient norm nan.")
    assert f"the first is {run.names[0]} (" in run.error and "trained parameters: finite" in run.error
    assert f"loss nan, first wrong in {where}, gradient" in run.error
    assert "--resume --on-non-finite skip" in run.error and "learning_rate (now 0.01)" in run.error
    assert ("precision fp32 (now bf16)" in run.error) == (precision == "bf16")
    assert run.state().items() >= run.start.items() and run.states == {}


def test_the_questions_of_the_batch_and_of_the_streams_that_are_wrong(tmp_path, spoiled):
    spoiled(math.nan, BAD)
    run = Run(tmp_path, max_steps=40)
    row = run.progress.step
    batch = [branch.id for group in dict(steps_from(row, row + 1, GROUPS, settings()))[row]
             for branch in group.branches]
    lines = {line.split(": ")[0].strip(): line.split(": ", 1)[1] for line in run.error.splitlines() if ": " in line}
    assert sorted(lines["questions in the batch"].split(", ")) == sorted(batch)
    wrong = lines["computed again, stream by stream"]
    assert wrong.startswith(LOSS_IS_WRONG) and wrong.count(" for ") == 1
    named = wrong.split(" for ")[1].split(", ")
    assert BAD in named and len(named) < len(batch)


@pytest.mark.parametrize("value, what", [(math.nan, "1 NaN of"), (-math.inf, "1 infinite of")])
def test_the_first_layer_in_the_network_s_order(tmp_path, monkeypatch, value, what):
    inner, wrong = gradients.gradients_of, (5, 3)

    def gradients_of(loss, parameters):
        found = inner(loss, parameters)
        for place in wrong:
            array = found[place].numpy().copy()
            array[0, 1] = value
            found[place] = jt.array(array).stop_grad()
        return found

    monkeypatch.setattr(gradients, "gradients_of", gradients_of)
    run = Run(tmp_path, batch_size=100, max_tokens_per_stream=1000)
    assert f"not finite in 2 of {len(run.names)} trained arrays" in run.error
    assert f"the first is {run.names[3]} ({what} " in run.error and f"the last {run.names[5]}\n" in run.error
    assert "the loss is nan" not in run.error


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("value, what", [(np.nan, "1 NaN"), (np.inf, "1 infinite")])
def test_a_trained_parameter_that_is_not_finite_stops_under_either_policy(tmp_path, value, what, policy):
    name = "transformer.h.1.mlp.c_fc.lora_A"
    array = np.ones((2, 24), np.float32)
    array[1, 1] = value
    run = Run(tmp_path, arrays={name: array}, on_non_finite=policy)
    assert f"trained parameters: not finite in {name} ({what} of 48 numbers)" in run.error
    assert "An update before this step went too far" in run.error and "--on-non-finite" not in run.error
    assert not (tmp_path / "train_loss.txt").exists()


def test_a_rate_far_too_high(tmp_path):
    run = Run(tmp_path, learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0, warmup_ratio=None)
    assert run.error.startswith(f"step {run.progress.step + 1}: the loss is") and run.progress.step >= 1
    assert "a lower learning_rate (now 1e+30), or gradient clipping (max_grad_norm, now 0" in run.error
    assert sorted(run.states) == list(range(1, run.progress.step + 1))
    assert run.state() == run.states[run.progress.step]


def test_a_gradient_that_is_finite_but_whose_squares_are_not(tmp_path, spoiled):
    spoiled(1e30)
    run = Run(tmp_path)
    assert "and the gradient norm inf." in run.error
    assert "gradient norm inf for " in run.error and "faulty" not in run.error
    largest = run.error.split("finite but too large; the largest value is in that of ")[1].splitlines()[0]
    assert largest in run.names


def test_numbers_that_are_finite_when_computed_again(tmp_path, monkeypatch):
    inner, factors = gradients.stream_loss, [math.nan]
    monkeypatch.setattr(gradients, "stream_loss", lambda model, stream, smoothing=0.0: inner(
        model, stream, smoothing) * (factors.pop() if factors else 1.0))
    assert "stream by stream: finite, so either their sum is not" in Run(tmp_path).error


# --- steps that are left out -----------------------------------------------------------------------------------------


def test_a_step_that_is_left_out_changes_only_the_count(tmp_path, spoiled):
    spoiled(math.nan, BAD)
    run = Run(tmp_path, on_non_finite="skip", schedule="cosine")
    skipped = [row["step"] for row in run.rows if row.get("skipped")]
    assert run.error is None and run.progress.step == 6 and len(skipped) == run.progress.skipped == 3
    assert run.optimizer.steps == run.progress.updates == 3
    before = {**run.start, **{f"{kind}.{name}": bytes(len(array)) for name, array in run.start.items()
                              for kind in ("first", "second")}}
    for step, state in run.states.items():
        assert (state == before) == (step in skipped), step
        before = state
    assert [row["learning_rate"] for row in run.rows] == [
        learning_rate(step, total_steps=6, peak=0.01, warmup_steps=0, schedule="cosine", min_ratio=0.0)
        for step in range(6)]
    lines = (tmp_path / "train_loss.txt").read_text().splitlines()
    assert [step for step, line in enumerate(lines, 1) if line == "nan"] == skipped and len(lines) == 6
    log = (tmp_path / "run.log").read_text()
    assert all(f"step {step} left out: the loss is nan" in log for step in skipped) and BAD in log
    curves = read_run_losses(tmp_path)
    assert len(curves.train.losses) == 3 and "3 of 6 losses are not finite" in curves.notes[0]


def test_the_tenth_in_a_row_stops(tmp_path, spoiled):
    spoiled(math.inf)
    run = Run(tmp_path, on_non_finite="skip", max_steps=30)
    assert run.error.startswith("step 10: ") and "10 steps in a row were like this one" in run.error
    assert (run.progress.step, run.progress.skipped) == (9, 9)
    assert run.state().items() >= run.start.items()


def test_steps_between_restart_the_count(tmp_path, spoiled):
    spoiled(math.nan, BAD)
    run = Run(tmp_path, on_non_finite="skip", max_steps=24)
    assert run.error is None and run.progress.skipped == 12


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_run.make_files(tmp_path_factory.mktemp("files"), 6, 2)


def run_config(files, output, **changes):
    return RunConfig(**{"base": str(files / "base"), "data": str(files / "train.json"), "output": str(output),
                        "max_steps": 8, "batch_size": 4, "learning_rate": 0.01, "save_every": 1,
                        "keep_checkpoints": 99, "on_non_finite": "skip", "dev": str(files / "dev.json"),
                        "eval_every": 2, **changes})


def arrays_of(folder):
    return {step: {name: array.tobytes() for name, array in read_state(path).arrays.items()}
            for step, path in checkpoints(folder / "checkpoints")}


@pytest.mark.parametrize("last", [0, 1])
def test_a_run_with_steps_left_out_resumes_bit_for_bit(files, tmp_path, spoiled, last):
    """From a checkpoint right after such a step, and from one after an ordinary step."""
    spoiled(math.nan, "3-river")
    whole = tmp_path / "whole"
    summary = task.train(run_config(files, whole))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    skipped = {row["step"] for row in rows if row.get("skipped")}
    assert summary["skipped_steps"] == len(skipped) == json.loads((whole / "summary.json").read_text())["skipped_steps"]
    assert 1 < len(skipped) < 5
    start = min(step for step in range(1, 8) if (step in skipped) == last and min(skipped) <= step < max(skipped))
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for step, path in checkpoints(folder / "checkpoints"):
        if step > start:
            path.unlink()
    again = task.train(run_config(files, folder), resume=True)
    assert arrays_of(folder) == arrays_of(whole)
    for name in ("train_loss.txt", "val_loss.txt", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert again["skipped_steps"] == summary["skipped_steps"]


def test_a_run_that_stopped_can_be_resumed_with_the_other_policy(files, tmp_path, spoiled):
    spoiled(math.nan, "3-river")
    task.train(run_config(files, tmp_path / "whole"))
    with pytest.raises(UserError, match="3-river"):
        task.train(run_config(files, tmp_path / "run", on_non_finite="stop"))
    assert not (tmp_path / "run" / "adapter").exists()
    task.train(run_config(files, tmp_path / "run"), resume=True)
    assert arrays_of(tmp_path / "run") == arrays_of(tmp_path / "whole")


@pytest.mark.parametrize("method, product", [("lora", "adapter"), ("full", "model")])
def test_an_update_that_goes_too_far_is_never_written(files, tmp_path, monkeypatch, method, product):
    inner, wrong = AdamW.step, []

    def step(self, gradients, rate, factor):
        inner(self, gradients, rate, factor)
        if self.steps == 5:
            wrong[:] = list(self.parameters)[1:3]
            for name in wrong:
                self.parameters[name].update(self.parameters[name] * math.inf)

    monkeypatch.setattr(AdamW, "step", step)
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        task.train(run_config(files, run, method=method, max_steps=5))
    assert "step-00000005.safetensors: not written" in str(caught.value)
    assert all(f"adapter.{name}: " in str(caught.value) for name in wrong) and len(wrong) == 2
    assert [step for step, _ in checkpoints(run / "checkpoints")] == [1, 2, 3, 4]
    assert not (run / product).exists() and not list(run.rglob("*.tmp"))
    assert all(np.isfinite(array).all() for _, path in checkpoints(run / "checkpoints")
               for array in load_file(path).values())
    best = next((run / "best").glob("*.safetensors"))
    assert all(np.isfinite(array).all() for array in load_file(best).values())


def test_a_validation_loss_that_is_not_finite_never_counts_as_the_best(tmp_path, monkeypatch):
    inner, factors = gradients.stream_loss, [math.nan, 2.0, -math.inf, math.inf, 3.0, math.nan, 1.0]
    found = iter(factors)
    monkeypatch.setattr(gradients, "stream_loss", lambda model, stream, smoothing=0.0: inner(
        model, stream, smoothing) * (next(found) if jt.flags.no_grad else 1.0))
    run = Run(tmp_path, dev=tiny.groups(2, seed=9), eval_every=1, learning_rate=1e-30, max_tokens_per_stream=1000)
    losses = np.loadtxt(tmp_path / "val_loss.txt")
    np.testing.assert_allclose(losses, np.array(factors) * losses[-1], rtol=1e-6)
    assert run.best == [1, 6] and run.progress.best_loss == losses[-1]
    assert (tmp_path / "run.log").read_text().count("never counts as the best") == 4


# --- the command -----------------------------------------------------------------------------------------------------


def huge(base):
    """Give a matrix of the base values so large that its products overflow."""
    path = base / "model.safetensors"
    arrays = load_file(path)
    name = next(name for name in arrays if name.endswith("h.0.mlp.c_proj.weight"))
    save_file({**arrays, name: np.full_like(arrays[name], 3e38)}, path)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_the_command_says_what_is_wrong_and_ends_with_code_2(tmp_path, capsys, policy):
    small_run.make_files(tmp_path, 6, 2)
    huge(tmp_path / "base")
    capsys.readouterr()
    arguments = ["train", "--base", str(tmp_path / "base"), "--data", str(tmp_path / "train.json"), "--output",
                 str(tmp_path / "run"), "--max-steps", "20", "--batch-size", "4", "--precision", "fp32",
                 "--on-non-finite", policy]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    error = err.split("jittor-lora: ")[-1]
    assert out == "" and "Traceback" not in err
    assert error.startswith(f"step {1 if policy == 'stop' else 10}: the loss is nan")
    assert "the first is transformer.h.0.attn.c_attn.lora_" in error and "questions in the batch: " in error
    assert ("--resume --on-non-finite skip" in error) == (policy == "stop")
    assert err.count("left out: the loss is nan") == (0 if policy == "stop" else 9)
    assert not checkpoints(tmp_path / "run" / "checkpoints") and not (tmp_path / "run" / "adapter").exists()


# --- several ranks ---------------------------------------------------------------------------------------------------

PROGRAM = """
import math, sys
from jittor_lora.cli.main import main
from jittor_lora.training import gradients

inner = gradients.stream_loss
gradients.stream_loss = lambda model, stream, smoothing=0.0: inner(model, stream, smoothing) * (
    math.nan if "3-river" in stream.ids else 1.0)
sys.exit(main())
"""


@needs_mpi
@pytest.mark.parametrize("policy", ["skip", pytest.param("stop", marks=pytest.mark.slow)])
def test_all_ranks_do_the_same(policy, files, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = ["train", "--base", files / "base", "--data", files / "train.json", "--max-steps", 8, "--batch-size", 4,
                 "--learning-rate", 0.01, "--precision", "fp32", "--on-non-finite", policy]
    found = {ranks: mpi.run(ranks, *arguments, "--output", tmp_path / str(ranks), program=program) for ranks in (1, 2)}
    if policy == "stop":
        assert found[1][0] == found[2][0] == 2 and found[2][2].count("questions in the batch: ") == 1
        assert LOSS_IS_WRONG in found[2][2] and " on rank " in found[2][2]
        return
    assert found[1][0] == found[2][0] == 0, found
    losses = [np.loadtxt(tmp_path / str(ranks) / "train_loss.txt") for ranks in (1, 2)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert 1 < np.isnan(losses[1]).sum() < 5
    one, two = (load_file(tmp_path / str(ranks) / "adapter" / "adapter_model.safetensors") for ranks in (1, 2))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=2e-5, err_msg=name)
