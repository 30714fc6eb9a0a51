"""Sums, multiples and rows of the CUDA backend against their definitions, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuda_emulator import DESCENDING, SHUFFLED, launches, thread_order
from jittor_lora.ops import as_var, fused, portable
from jittor_lora.system.runtime import jt
from kernel_comparison import both, compare, normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")
few = settings(max_examples=10, deadline=None)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 70))


@few
@given(sizes, st.integers(2, 4))
@example((1, 1), 2)
@example((5, 64), 3)
def test_sums_and_what_several_operations_share(shape, count):
    both("add", [normal(*shape), normal(*shape, seed=1)])

    def used(operation):
        def several(x, *factors):
            parts = [part * factor for part, factor in zip(operation(x, len(factors)), factors)]
            return sum(parts[1:], parts[0])
        return several

    arrays = [normal(*shape, seed=seed) for seed in range(count + 1)]
    compare(used(fused.shared), used(portable.shared), arrays, [0])


@pytest.mark.parametrize("count, started", [(1, 1), (15, 1), (16, 2), (40, 3)])
def test_a_sum_of_many_arrays_is_added_in_their_order(count, started):
    terms = [normal(3, 8, seed=seed, scale=10.0 ** (seed % 5)) for seed in range(count)]
    expected = terms[0]
    for term in terms[1:]:
        expected = expected + term
    before = launches()
    assert (fused.call("sum", [(3, 8)], [jt.array(term) for term in terms])[0].numpy() == expected).all()
    assert launches() - before == started


@few
@given(sizes, st.data())
def test_rows(shape, data):
    index = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=80)), np.int32)
    chosen = as_var(index).stop_grad()
    compare(lambda x: fused.rows(x, chosen), lambda x: portable.rows(x, chosen), [normal(*shape)])


@pytest.mark.parametrize("shape", [(3, 2, 8), (4, 1028), (1, 1)])  # heads; more than a block's threads; one number
def test_rows_of_other_shapes(shape):
    chosen = as_var(np.array([shape[0] - 1, 0, 0], np.int32)).stop_grad()
    compare(lambda x: fused.rows(x, chosen), lambda x: portable.rows(x, chosen), [normal(*shape)])


def test_rows_that_repeat_are_added_in_order():
    index = np.array([1] * 50 + [0] + [1] * 50, np.int32)
    x, upstream = jt.array(normal(3, 9)), normal(101, 9, scale=1e4)
    (found,) = jt.grad((fused.rows(x, as_var(index)) * jt.array(upstream)).sum(), [x])
    expected = np.zeros((3, 9), np.float32)
    for row, more in zip(index, upstream):
        expected[row] += more
    assert (found.numpy() == expected).all()


@pytest.mark.parametrize("order", [DESCENDING, SHUFFLED])
def test_the_order_of_threads_does_not_matter(order):
    index, x = as_var(np.random.RandomState(0).randint(0, 9, 70).astype(np.int32)), jt.array(normal(9, 36))
    expected = jt.grad((fused.rows(x, index) * jt.array(normal(70, 36, seed=1))).sum(), [x])[0].numpy()
    with thread_order(order):
        found = jt.grad((fused.rows(x, index) * jt.array(normal(70, 36, seed=1))).sum(), [x])[0].numpy()
    assert (found == expected).all()


def test_multiples():
    for count in (5, 8):
        x = normal(count)
        found = fused.call("scale", [(count,)], [jt.array(x), as_var(np.array([0.3], np.float32))])[0]
        assert (found.numpy() == x * np.float32(0.3)).all()


def test_a_loss_is_divided_and_so_is_its_gradient():
    x = as_var(np.array([3], np.float32))
    loss = fused.loss_per(x, 7.0)
    assert loss.item() == np.float32(3) / np.float32(7)
    assert jt.grad(loss, [x])[0].item() == np.float32(1) / np.float32(7)


def test_not_a_number_stays():
    x = normal(4, 8)
    x[2, 3] = np.nan
    index = as_var(np.array([2, 2, 0], np.int32))
    assert np.argwhere(np.isnan(fused.rows(jt.array(x), index).numpy())).tolist() == [[0, 3], [1, 3]]
    assert np.argwhere(np.isnan(fused.add(jt.array(x), jt.array(x)).numpy())).tolist() == [[2, 3]]
