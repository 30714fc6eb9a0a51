"""Norms of the CUDA backend against their definitions, on the emulator."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuda_emulator import DESCENDING, SHUFFLED, emulated, thread_order
from jittor_lora.ops import fused
from jittor_lora.system.runtime import jt
from kernel_comparison import both, normal

few = settings(max_examples=15, deadline=None)
sizes = st.tuples(st.integers(1, 20), st.integers(1, 200))


@pytest.fixture(autouse=True, scope="module")
def on_the_emulator():
    with emulated():
        yield


@few
@given(sizes, st.integers(0, 50))
@example((1, 1), 0)
@example((3, 768), 1000)
def test_layer_norm(shape, mean):
    rows, width = shape
    both("layer_norm", [normal(rows, width) + mean, normal(width, seed=1), normal(width, seed=2)], (1e-5,), [0],
         value=1e-5 + 1e-6 * mean, gradient=1e-4 + 1e-4 * mean, least=1.0)


@few
@given(sizes)
@example((1, 576))
def test_rms_norm(shape):
    both("rms_norm", [normal(*shape), normal(shape[1], seed=1)], (1e-5,), [0], least=1.0)


@pytest.mark.parametrize("order", [DESCENDING, SHUFFLED])
def test_the_order_of_threads_does_not_matter(order):
    x, w = jt.array(normal(9, 100)), jt.array(normal(100, seed=1)).stop_grad()
    expected = fused.rms_norm(x, w, 1e-5).numpy()
    with thread_order(order):
        assert (fused.rms_norm(x, w, 1e-5).numpy() == expected).all()
