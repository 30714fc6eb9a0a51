"""TensorBoard itself reads the event files, also those of a resumed run."""

from __future__ import annotations

import pytest

from jittor_lora.training.log import RunLog

pytestmark = pytest.mark.parity


def log_steps(log, first, last, scale=1.0):
    for step in range(first, last + 1):
        log.step(step, loss=scale / step, learning_rate=1e-3, grad_norm=1.0, tokens=10, questions=2, seconds=0.5)


def test_tensorboard_shows_an_interrupted_run_as_one(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, 12, quiet=True, report_to=["tensorboard"]) as log:
        log.validation(0, loss=4.0)
        log_steps(log, 1, 10, scale=2.0)
    with RunLog(tmp_path, 12, quiet=True, report_to=["tensorboard"]) as log:
        log.truncate_to(7)
        log_steps(log, 8, 12)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= {"train_loss", "val_loss", "learning_rate", "grad_norm",
                                             "tokens_per_second"}
    points = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert points == [(step, pytest.approx((2.0 if step <= 7 else 1.0) / step)) for step in range(1, 13)]
    assert [event.value for event in events.Scalars("tokens_per_second")] == [20.0] * 12


def test_numbers_beyond_float32_become_infinite(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, 1, quiet=True, report_to=["tensorboard"]) as log:
        log.step(1, loss=float("nan"), learning_rate=1e300, grad_norm=-1e300, tokens=1, questions=1, seconds=1)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = [events.Scalars(name)[0].value for name in ("learning_rate", "grad_norm", "train_loss")]
    assert values[:2] == [float("inf"), float("-inf")] and values[2] != values[2]
