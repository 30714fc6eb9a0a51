"""Activations of the CUDA backend against their definitions, on the emulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jittor_lora.ops import fused
from jittor_lora.system.runtime import jt
from kernel_comparison import both, normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")
few = settings(max_examples=10, deadline=None)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 70))


@few
@given(sizes)
@example((1, 1))
@example((40, 128))
def test_activations(shape):
    both("gelu_tanh", [normal(*shape, scale=4)])
    both("swiglu", [normal(*shape, scale=4), normal(*shape, seed=1)])


def test_activations_far_out():
    x = np.array([-1e9, -100, -20, -12, -1e-30, 0, 1e-30, 12, 20, 100, 1e9, 3], np.float32)
    for part in (x, x[:11]):  # by fours and one by one
        both("gelu_tanh", [part])
        both("swiglu", [part, np.ones_like(part)])


def test_gelu_is_as_exact_as_float32_allows():
    x = np.linspace(-6, 6, 4000).astype(np.float32)
    wide = x.astype(np.float64)
    exact = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    assert np.abs(fused.gelu_tanh(jt.array(x)).numpy() - exact).max() < 5e-7


@pytest.mark.parametrize("count", [3, 8])
def test_not_a_number_stays(count):
    values = np.ones(count, np.float32)
    values[1] = np.nan
    expected = np.isnan(values).tolist()
    x, ones = jt.array(values), jt.array(np.ones_like(values))
    gelu, swiglu = fused.gelu_tanh(x), fused.swiglu(x, ones)
    made = gelu, swiglu, *(jt.grad(y.sum(), [x])[0] for y in (gelu, swiglu)), jt.grad(swiglu.sum(), [ones])[0]
    assert [np.isnan(y.numpy()).tolist() for y in made] == [expected] * 5


def test_infinity():
    x = jt.array(np.array([np.inf, -np.inf, 1, 1], np.float32))
    both_ends = fused.gelu_tanh(x).numpy()
    assert both_ends[0] == np.inf and abs(np.nan_to_num(both_ends[1])) == 0
    assert jt.grad(fused.gelu_tanh(x).sum(), [x])[0].numpy()[:2].tolist() == [1.0, 0.0]
