"""A slow step prints one status line, a quick one none."""

import io
import time

from jittor_lora.system.waiting import silence_explained


def test_a_slow_step_prints_a_status_line():
    screen = io.StringIO()
    with silence_explained("patience", 0.01, screen):
        time.sleep(0.2)
    assert screen.getvalue() == "patience\n"


def test_a_quick_step_prints_nothing():
    screen = io.StringIO()
    with silence_explained("patience", 0.05, screen) as came:
        came()
        time.sleep(0.15)
    with silence_explained("patience", 30, screen):
        pass
    assert screen.getvalue() == ""
