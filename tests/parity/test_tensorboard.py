"""TensorBoard itself reads the event files, also those of a resumed run."""

from __future__ import annotations

import pytest

from jittor_lora.training.log import RunLog

pytestmark = pytest.mark.parity


def log_steps(log, first, last, scale=1.0):
    for step in range(first, last + 1):
        log.step(step, loss=scale / step, learning_rate=1e-3, grad_norm=1.0, tokens=10, questions=2, seconds=0.5)


def test_tensorboard_shows_an_interrupted_run_as_one(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, 12, quiet=True) as log:
        log.validation(0, loss=4.0)
        log_steps(log, 1, 10, scale=2.0)
    with RunLog(tmp_path, 12, quiet=True) as log:
        log.truncate_to(7)
        log_steps(log, 8, 12)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= {"loss/train", "loss/validation", "learning_rate", "grad_norm",
                                             "speed/tokens_per_second", "speed/questions_per_second"}
    points = [(event.step, event.value) for event in events.Scalars("loss/train")]
    assert points == [(step, pytest.approx((2.0 if step <= 7 else 1.0) / step)) for step in range(1, 13)]
    assert [event.value for event in events.Scalars("speed/tokens_per_second")] == [20.0] * 12
