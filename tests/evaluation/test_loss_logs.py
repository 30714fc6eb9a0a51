from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.evaluation.loss_logs import read_loss_file, read_loss_files, read_run_losses


def read(tmp_path, text, kind="train"):
    path = tmp_path / "loss.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_loss_file(path, kind)


@pytest.mark.parametrize("line, step, loss", [
    ("3.21", None, 3.21),
    (" +1e-3\r", None, 0.001),
    ("10,3.21", 10, 3.21),
    ("10\t3.21", 10, 3.21),
    ("Epoch 1, Step 10, Loss: 3.21", 10, 3.21),
    ("[epoch 1] iter 10 | lr 1e-4 | ms/batch 7.5 | loss 3.21 | ppl 24.8", 10, 3.21),
    ("{'loss': 3.21, 'step': 10}", 10, 3.21),
    ("step=10 train/loss=3.21 val/loss=9.9", 10, 3.21),
    ("jt.Var([3.21],dtype=float32)", None, 3.21),
    ("jt.Var([3.21], dtype=float32)", None, 3.21),
    ("Step 10: loss jt.Var([3.21],dtype=float32)", 10, 3.21),
    ("tensor(3.21, device='cuda:0', grad_fn=<NllLossBackward0>)", None, 3.21),
    ("np.float32(3.21)", None, 3.21),
    ("[3.21]", None, 3.21),
    ("损失：3.21", None, 3.21),
])
def test_forms_of_a_line(tmp_path, line, step, loss):
    series = read(tmp_path, line + "\n")
    assert series.losses.tolist() == [loss]
    assert series.has_steps == (step is not None)
    assert series.steps.tolist() == [1 if step is None else step]


@pytest.mark.parametrize("line", ["hello", "3.2 apples", "loss:", "loss 3.2.1", "1,2,3", "1_000", "0x10", "[3.2, 4.5]",
                                  "glossary 3", "3,2 4"])
def test_lines_without_a_loss_are_refused_with_their_numbers(tmp_path, line):
    with pytest.raises(UserError) as caught:
        read(tmp_path, f"# a comment\n1.5\n\n{line}\n1.4\n")
    assert f"line 4: {line!r}" in str(caught.value)
    assert str(tmp_path / "loss.txt") in str(caught.value)


def test_kind_chooses_between_two_losses_of_a_line(tmp_path):
    text = "step 5 train_loss: 2.5 val_loss: 3.5\nstep 9 train_loss: 2.0 val_loss: 3.0\n"
    assert read(tmp_path, text, "train").losses.tolist() == [2.5, 2.0]
    assert read(tmp_path, text, "val").losses.tolist() == [3.5, 3.0]


def test_heading_tells_the_columns(tmp_path):
    series = read(tmp_path, "epoch,step,lr,train_loss,val_loss\n1,10,0.1,2.5,3.5\n1,20,0.1,2.0,3.0\n", "val")
    assert (series.steps.tolist(), series.losses.tolist()) == ([10, 20], [3.5, 3.0])


def test_losses_that_are_not_finite_are_left_out_and_counted(tmp_path):
    series = read(tmp_path, "3.0\nnan\n2.0\n-inf\nNaN\n1.0\n")
    assert (series.steps.tolist(), series.losses.tolist()) == ([1, 3, 6], [3.0, 2.0, 1.0])
    assert "3 of 6 losses are not finite" in series.notes[0]
    with pytest.raises(UserError, match="only losses that are not finite"):
        read(tmp_path, "nan\n")


def test_steps_that_start_anew_are_replaced_by_line_numbers(tmp_path):
    series = read(tmp_path, "Epoch 1, Step 1, Loss: 3\nEpoch 1, Step 2, Loss: 2\nEpoch 2, Step 1, Loss: 1\n")
    assert series.steps.tolist() == [1, 2, 3]
    assert "do not rise" in series.notes[0]


@pytest.mark.parametrize("content, message", [(b"", "no line with a number"), (b"\n# x\n", "no line with a number"),
                                              (b"3.1\n\xe9\n", "expected UTF-8 text, found byte 0xe9 at position 4")])
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)
    with pytest.raises(UserError, match="No such file"):
        read_loss_file(tmp_path / "none.txt")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_our_own_lines_read_back_to_the_same_floats(tmp_path_factory, losses):
    path = tmp_path_factory.mktemp("log") / "train_loss.txt"
    path.write_text("".join(f"{loss!r}\n" for loss in losses))
    assert read_loss_file(path).losses.tolist() == losses


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("log") / "loss.txt"
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        series = read_loss_file(path)
    except UserError:
        return
    assert np.isfinite(series.losses).all()
    assert len(series.steps) == len(series.losses) > 0


def test_validation_without_steps_is_spread_over_the_training(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"{3 - step / 100}\n" for step in range(100)))
    (tmp_path / "val.txt").write_text("3\nnan\n2\n1\n")
    curves = read_loss_files(tmp_path / "train.txt", tmp_path / "val.txt")
    assert curves.validation.steps.tolist() == [25, 75, 100]
    assert any("spread evenly" in note for note in curves.notes)
    (tmp_path / "val.txt").write_text("step,loss\n7,3\n50,2\n")
    curves = read_loss_files(tmp_path / "train.txt", tmp_path / "val.txt")
    assert (curves.validation.steps.tolist(), curves.notes) == ([7, 50], ())


def test_run_folder_takes_exact_steps_from_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "val_loss": 4.0}\n{"step": 1, "train_loss": 3.5}\n{"step": 2, "train_loss": null}\n'
        '{"step": 2, "val_loss": 3.0, "f1": 20.0}\n{"step": 3, "train_l')
    curves = read_run_losses(tmp_path)
    assert (curves.train.steps.tolist(), curves.train.losses.tolist()) == ([1], [3.5])
    assert (curves.validation.steps.tolist(), curves.validation.losses.tolist()) == ([0, 2], [4.0, 3.0])
    assert "1 of 2 losses are not finite" in curves.notes[0]


def test_run_folder_without_metrics_takes_the_text_logs(tmp_path):
    (tmp_path / "train_loss.txt").write_text("3\n2\n")
    assert read_run_losses(tmp_path).validation is None
    (tmp_path / "val_loss.txt").write_text("2.5\n")
    assert read_run_losses(tmp_path).validation.steps.tolist() == [2]


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected a run folder"):
        read_run_losses(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 3}\n{"train_loss": 2}\n[]\nx\n')
    with pytest.raises(UserError, match="3 lines are not") as caught:
        read_run_losses(tmp_path)
    assert all(f"line {number}" in str(caught.value) for number in (2, 3, 4))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val_loss": 3}\n')
    with pytest.raises(UserError, match="no train_loss"):
        read_run_losses(tmp_path)
