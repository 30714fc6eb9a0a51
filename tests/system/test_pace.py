"""Time left: the first steps give no estimate, and steps count by their size."""

import pytest

from jittor_lora.system.pace import Pace, interval


def paced(steps, **arguments):
    now = [0.0]
    pace = Pace(clock=lambda: now[0], **arguments)
    for amount, seconds in steps:
        now[0] += seconds
        pace.note(amount)
    return pace


def test_a_slow_first_step_does_not_count():
    assert paced([(1, 30.0), (1, 2.0), (1, 2.0)]).seconds_for(100) == pytest.approx(200)


@pytest.mark.parametrize("steps", range(3))
def test_the_first_steps_give_no_estimate(steps):
    pace = paced([(1, 30.0)] * steps)
    assert pace.seconds_for(10) is None
    assert pace.left(10) == ""


def test_steps_count_by_their_size():
    pace = paced([(7, 30.0), (100, 1.0), (500, 5.0)])
    assert pace.seconds_for(1000) == pytest.approx(10)
    assert pace.left(30_000) == ", 05:00 left"


def test_the_time_between_steps_counts():
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    for _ in range(5):
        now[0] += 2.0
        pace.note()
        now[0] += 1.0  # a validation
    assert pace.seconds_for(1) == pytest.approx(3)


def test_more_initial_steps_may_be_left_out():
    steps = [(1, 9.0)] * 4 + [(1, 1.0)] * 2
    assert paced(steps, apart=4, least=3).seconds_for(1) is None
    assert paced([*steps, (1, 1.0)], apart=4, least=3).seconds_for(5) == pytest.approx(5)


@pytest.mark.parametrize("seconds, text", [(0, "00:00"), (59.9, "00:59"), (200, "03:20"), (3800, "1:03:20")])
def test_intervals(seconds, text):
    assert interval(seconds) == text
