"""Linear layers of the CUDA backend against their definitions, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuda_emulator import DESCENDING, SHUFFLED, launches, thread_order
from jittor_lora.ops import Matrix, fused, portable
from jittor_lora.system.runtime import jt
from kernel_comparison import BF16, GRADIENT, VALUE, compare, normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")
few = settings(max_examples=10, deadline=None)


def linear_case(rows, width, out, rank, bias=False, p=0.0, precision="fp32", frozen_input=False, row=0):
    value, gradient = (BF16, BF16) if precision == "bf16" else (VALUE, GRADIENT)
    weight = normal(out, width, seed=1, scale=width**-0.5)
    arrays = [normal(rows, width)]
    if rank:
        arrays += [normal(rank, width, seed=3, scale=width**-0.5), normal(out, rank, seed=4)]
    b = jt.array(normal(out, seed=2)).stop_grad() if bias else None
    matrix, array = Matrix.of(weight, precision), jt.array(weight).stop_grad()

    def with_kernel(x, a=None, b_=None):
        return fused.lora_linear(x, matrix, b, a, b_, 2.0, p, 7, row)

    def defined(x, a=None, b_=None):
        return portable.linear(x, array, b) if a is None else portable.lora_linear(x, array, b, a, b_, 2.0, p, 7, row)

    compare(with_kernel, defined, arrays, [i for i in range(len(arrays)) if i or not frozen_input], value, gradient)


@few
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.integers(0, 20), st.booleans(),
       st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from(["fp32", "bf16", "tf32"]))
@example(1, 1, 1, 1, True, 0.5, "fp32")
@example(300, 33, 65, 8, True, 0.1, "bf16")  # several chunks of rows, several blocks of columns
@example(130, 16, 300, 12, False, 0.0, "fp32")
@example(5, 128, 33, 0, True, 0.0, "bf16")
def test_linear(rows, width, out, rank, bias, p, precision):
    linear_case(rows, width, out, rank, bias, p, precision)


@pytest.mark.parametrize("rank", [1, 4, 7, 8, 9, 16, 33, 64])
def test_ranks(rank):
    linear_case(19, 40, 35, rank, True, 0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_input_that_takes_no_gradient(precision):
    linear_case(20, 24, 30, 8, True, 0.5, precision, frozen_input=True)


@pytest.mark.parametrize("row", [0, 12345, 2**31 // 64])
def test_dropout_masks_are_those_of_the_definition(row):
    """Through A = B = 1 and W = 0 the layer returns the mask itself, bit for bit, and its gradient, too."""
    n, rows = 64, 37
    one, x = np.eye(n, dtype=np.float32), np.ones((rows, n), np.float32)
    nothing = np.zeros((n, n), np.float32)
    found = []
    for module, weight in ((fused, Matrix.of(nothing)), (portable, jt.array(nothing).stop_grad())):
        variables = [jt.array(each) for each in (x, one, one)]
        y = module.lora_linear(variables[0], weight, None, *variables[1:], 1.0, 0.3, 5, row)
        found.append([y.numpy(), *(g.numpy() for g in jt.grad(y.sum(), variables))])
    mask = portable.dropout_mask(rows, n, 0.3, 5, row).numpy()
    assert 0.5 < (mask > 0).mean() < 0.9
    np.testing.assert_array_equal(found[0][0], mask)
    np.testing.assert_array_equal(found[0][1], mask)
    np.testing.assert_allclose(found[0][2], found[1][2], 1e-5)


def test_not_a_number_stays_in_its_row():
    x = normal(9, 20)
    x[4, 3] = np.nan
    a, b = jt.array(normal(8, 20, seed=1)), jt.array(normal(30, 8, seed=2))
    y = fused.lora_linear(jt.array(x), Matrix.of(normal(30, 20, seed=3), "bf16"), None, a, b, 1.0, 0.9, 3).numpy()
    assert np.isnan(y).any(1).tolist() == [row == 4 for row in range(9)] and np.isnan(y[4]).all()


@pytest.mark.parametrize("order", [DESCENDING, SHUFFLED])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_order_of_threads_does_not_matter(order, precision):
    def results():
        variables = [jt.array(each) for each in (normal(260, 48), normal(10, 48, seed=1), normal(40, 10, seed=2))]
        y = fused.lora_linear(variables[0], weight, None, *variables[1:], 2.0, 0.1, 7)
        return [y.numpy(), *(g.numpy() for g in jt.grad((y * y).sum(), variables))]

    weight = Matrix.of(normal(40, 48, seed=3), precision)
    expected = results()
    with thread_order(order):
        for found, one in zip(results(), expected):
            np.testing.assert_array_equal(found, one)


@pytest.mark.parametrize("precision,rank,expected", [("fp32", 8, (3, 3)), ("bf16", 8, (3, 3)), ("fp32", 0, (1, 1)),
                                                     ("bf16", 0, (2, 2))])
def test_launches(precision, rank, expected):
    x, weight = jt.array(normal(200, 48)), Matrix.of(normal(40, 48, seed=3), precision)
    pair = (jt.array(normal(rank, 48)), jt.array(normal(40, rank))) if rank else (None, None)
    jt.sync_all()
    before = launches()
    y = fused.lora_linear(x, weight, None, *pair, 1.0, 0.1, 7)
    y.sync()
    forward = launches() - before
    jt.grad((y * y).sum(), x).sync()
    assert (forward, launches() - before - forward) == expected


@pytest.mark.parametrize("precision, rank", [("bf16", 0), ("bf16", 8), ("fp32", 8)])
def test_arrays_that_begin_in_the_middle_of_others(precision, rank):
    """Slices may share the memory of a larger array: such addresses are multiples of four bytes only."""
    weight = Matrix.of(normal(30, 21, seed=1), precision)
    whole = [normal(13, 21), normal(rank + 1, 21, seed=2), normal(31, max(rank, 1), seed=3)]
    parts = [array[1:] for array in whole]

    def results(variables):
        pair = variables[1:] if rank else (None, None)
        y = fused.lora_linear(variables[0], weight, None, *pair, 1.0)
        return [y.numpy(), *(g.numpy() for g in jt.grad((y * y).sum(), variables[: 3 if rank else 1]))]

    shared = [jt.array(array)[1:] for array in whole]
    for found, expected in zip(results(shared), results([jt.array(part) for part in parts])):
        np.testing.assert_array_equal(found, expected)
