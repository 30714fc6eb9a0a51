"""Norms of the CUDA backend against their definitions, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuda_emulator import DESCENDING, SHUFFLED, thread_order
from jittor_lora.ops import fused
from jittor_lora.system.runtime import jt
from kernel_comparison import both, normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")
few = settings(max_examples=10, deadline=None)
sizes = st.tuples(st.integers(1, 20), st.integers(1, 200) | st.integers(1, 50).map(lambda n: 4 * n))


@few
@given(sizes, st.integers(0, 50))
@example((1, 1), 0)
@example((3, 768), 1000)
@example((5, 1024), 10)  # the widest row of a warp
@example((2, 1028), 0)  # a block per row
@example((2, 259), 0)  # the same, one number at a time
@example((1, 16392), 0)  # more than a block keeps
def test_layer_norm(shape, mean):
    rows, width = shape
    both("layer_norm", [normal(rows, width) + np.float32(mean), normal(width, seed=1), normal(width, seed=2)], (1e-5,),
         [0], value=1e-5 + 1e-6 * mean, gradient=1e-4 + 1e-4 * mean, least=1.0)


@few
@given(sizes)
@example((1, 576))
@example((3, 1028))
@example((2, 4099))
def test_rms_norm(shape):
    both("rms_norm", [normal(*shape), normal(shape[1], seed=1)], (1e-5,), [0], least=1.0)


def test_norms_of_arrays_that_begin_anywhere():
    whole, w, b = jt.array(normal(7, 9)), *(jt.array(normal(8, seed=seed)).stop_grad() for seed in (1, 2))
    x = whole.reshape((63,))[1:41].reshape((5, 8))
    expected = fused.layer_norm(jt.array(x.numpy()), w, b, 1e-5)
    np.testing.assert_allclose(fused.layer_norm(x, w, b, 1e-5).numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("width", [8, 2048])
def test_a_row_that_is_not_finite_stays_the_only_one(value, width):
    x, w = normal(3, width), jt.array(normal(width, seed=1)).stop_grad()
    x[1, 5] = value
    v = jt.array(x)
    y = fused.rms_norm(v, w, 1e-5)
    found = y.numpy(), jt.grad(y.sum(), [v])[0].numpy()
    for each in found:
        assert np.isfinite(each[[0, 2]]).all()
        assert np.isnan(each[1, 5])


@pytest.mark.parametrize("order", [DESCENDING, SHUFFLED])
@pytest.mark.parametrize("width", [100, 1500])
def test_the_order_of_threads_does_not_matter(order, width):
    def results():
        x, w, b = jt.array(normal(5, width)), *(jt.array(normal(width, seed=s)).stop_grad() for s in (1, 2))
        made = [fused.rms_norm(x, w, 1e-5), fused.layer_norm(x, w, b, 1e-5)]
        return [part.numpy() for y in made for part in (y, jt.grad((y * y).sum(), [x])[0])]

    expected = results()
    with thread_order(order):
        for found, same in zip(results(), expected):
            assert (found == same).all()
