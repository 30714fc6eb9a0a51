"""The learning rate at the corners of each schedule."""

from __future__ import annotations

import pytest

from jittor_lora.training.schedule import learning_rate


def rates(schedule: str, **changes) -> list[float]:
    settings = {"total_steps": 10, "peak": 2.0, "warmup_steps": 4, "schedule": schedule, **changes}
    return [learning_rate(step, **settings) for step in range(12)]


def test_linear():
    assert rates("linear") == pytest.approx([0, 0.5, 1, 1.5, 2, 10 / 6, 8 / 6, 1, 4 / 6, 2 / 6, 0, 0])


def test_cosine():
    assert rates("cosine")[4:] == pytest.approx([2, 1.8660254, 1.5, 1, 0.5, 0.1339746, 0, 0])


def test_constant():
    assert rates("constant") == [0, 0.5, 1, 1.5, *[2.0] * 8]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ends_at_the_ratio_of_the_peak(schedule):
    ended = rates(schedule, min_ratio=0.1)
    assert ended[4] == 2.0 and ended[7] == pytest.approx(1.1) and ended[10:] == pytest.approx([0.2, 0.2])


def test_no_warmup_starts_at_the_peak():
    assert rates("linear", warmup_steps=0)[0] == 2.0


def test_warmup_as_long_as_the_run_or_longer():
    assert rates("linear", warmup_steps=20)[9] == pytest.approx(0.9)
    assert rates("cosine", warmup_steps=10)[9:] == pytest.approx([1.8, 2.0, 0.0])


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="sine"):
        rates("sine")
    with pytest.raises(ValueError, match="negative"):
        learning_rate(-1, total_steps=10, peak=1.0, warmup_steps=0, schedule="linear")
