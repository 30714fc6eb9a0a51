"""A long silence is explained once, a short one never."""

import io
import time

from jittor_lora.system.waiting import silence_explained


def test_a_long_silence_is_explained():
    screen = io.StringIO()
    with silence_explained("patience", 0.01, screen):
        time.sleep(0.2)
    assert screen.getvalue() == "patience\n"


def test_what_comes_in_time_needs_no_word():
    screen = io.StringIO()
    with silence_explained("patience", 0.05, screen) as came:
        came()
        time.sleep(0.15)
    with silence_explained("patience", 30, screen):
        pass
    assert screen.getvalue() == ""
