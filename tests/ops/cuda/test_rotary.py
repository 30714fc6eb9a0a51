"""Rotary positions of the CUDA backend against their definition, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jittor_lora.ops import fused
from jittor_lora.system.runtime import jt
from kernel_comparison import both, normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")

@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 20))
@example(1, 1, 1)
@example(3, 9, 32)
@example(2, 33, 32)  # more than a block's threads
def test_rotary(rows, heads, half):
    angles = normal(rows, half, seed=1)
    both("rotary", [normal(rows, heads, 2 * half), np.cos(angles), np.sin(angles)], (), [0])


def test_not_a_number_stays_in_its_pair():
    x, cos, sin = normal(2, 3, 8), jt.array(np.cos(normal(2, 4))), jt.array(np.sin(normal(2, 4)))
    x[1, 2, 1] = np.nan
    assert np.argwhere(np.isnan(fused.rotary(jt.array(x), cos, sin).numpy())).tolist() == [[1, 2, 1], [1, 2, 5]]
