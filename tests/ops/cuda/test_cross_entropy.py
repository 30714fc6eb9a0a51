"""The loss of the CUDA backend against its definition, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuda_emulator import DESCENDING, SHUFFLED, launches, thread_order
from jittor_lora.ops import Matrix, as_var, fused, portable
from jittor_lora.system.runtime import jt
from kernel_comparison import BF16, GRADIENT, VALUE, compare, least_of_loss, normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")
few = settings(max_examples=8, deadline=None)


def check(rows, width, size, precision="fp32", value=VALUE, gradient=GRADIENT, smoothing=0.0, weights=None):
    hidden, head = normal(rows, width), normal(size, width, seed=1)
    labels = np.random.RandomState(2).randint(0, size, rows).astype(np.int32)
    weights = np.abs(normal(rows, seed=3)) + np.float32(0.1) if weights is None else weights
    matrix = Matrix.of(head, precision)
    compare(lambda h: fused.token_cross_entropy(h, matrix, as_var(labels), as_var(weights), smoothing),
            lambda h: portable.token_cross_entropy(h, jt.array(head).stop_grad(), as_var(labels), as_var(weights),
                                                   smoothing),
            [hidden], None, value, gradient, **least_of_loss(hidden, head, weights, precision))


@few
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 300))
@example(1, 1, 1)
@example(3, 8, 5000)  # more than a block takes at a time
@example(300, 5, 33)  # two panels of rows
def test_cross_entropy(rows, width, size):
    check(rows, width, size)


@few
@given(st.integers(1, 20), st.integers(1, 40), st.integers(2, 300))
@example(2, 16, 4160)  # a multiple of the head's unit
@example(300, 4, 63)
def test_in_bf16(rows, width, size):
    check(rows, width, size, "bf16", BF16, BF16)


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
@pytest.mark.parametrize("rows, width, size", [(5, 16, 7), (270, 6, 65), (3, 12, 4099)])
def test_smoothed_labels(rows, width, size, smoothing):
    check(rows, width, size, smoothing=smoothing)
    check(rows, width, size, "bf16", BF16, BF16, smoothing)


def test_rows_without_weight():
    check(6, 8, 40, weights=np.array([0, 1, 0, 2, 0, 0], np.float32))
    check(3, 8, 40, weights=np.zeros(3, np.float32))


@pytest.mark.parametrize("precision, started", [("fp32", 4), ("bf16", 5)])
def test_launches_of_a_panel(precision, started):
    hidden, labels = jt.array(normal(9, 8)), as_var(np.arange(9, dtype=np.int32))
    before = launches()
    loss = fused.token_cross_entropy(hidden, Matrix.of(normal(33, 8, seed=1), precision), labels, jt.ones(9))
    loss.sync()
    assert launches() - before == started


def test_without_a_gradient():
    head, labels = Matrix.of(normal(33, 8, seed=1)), as_var(np.arange(9, dtype=np.int32))
    hidden = normal(9, 8)
    whole = fused.token_cross_entropy(jt.array(hidden), head, labels, jt.ones(9)).item()
    before = launches()
    assert fused.token_cross_entropy(jt.array(hidden).stop_grad(), head, labels, jt.ones(9)).item() == whole
    assert launches() - before == 3


def test_extreme_logits():
    head = np.array([[1.0], [-1.0], [0.5]], np.float32)
    hidden, labels = np.array([[5000.0], [-5000.0]], np.float32), as_var(np.array([1, 1], np.int32))
    loss = fused.token_cross_entropy(jt.array(hidden), Matrix.of(head), labels, jt.ones(2))
    assert loss.item() == pytest.approx(10000.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_the_only_one(value, precision):
    values = normal(4, 8)
    values[2, 1] = value
    hidden, head = jt.array(values), Matrix.of(normal(70, 8, seed=1), precision)
    loss = fused.token_cross_entropy(hidden, head, as_var(np.arange(4, dtype=np.int32)), jt.ones(4))
    assert not np.isfinite(loss.item())
    found = jt.grad(loss, [hidden])[0].numpy()
    assert np.isfinite(found[[0, 1, 3]]).all() and np.isnan(found[2]).all()


@pytest.mark.parametrize("order", [DESCENDING, SHUFFLED])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_order_of_threads_does_not_matter(order, precision):
    def results():
        hidden, head = jt.array(normal(5, 8)), Matrix.of(normal(200, 8, seed=1), precision)
        loss = fused.token_cross_entropy(hidden, head, as_var(np.arange(5, dtype=np.int32)), jt.ones(5), 0.1)
        return loss.numpy(), jt.grad(loss, [hidden])[0].numpy()

    expected = results()
    with thread_order(order):
        for found, same in zip(results(), expected):
            assert (found == same).all()
