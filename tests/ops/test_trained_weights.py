"""Fused operations with weights that take gradients, against their definitions: values, gradients, and their bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jittor_lora.ops import TrainedMatrix, portable
from jittor_lora.system.runtime import jt, set_threads, threads
from kernel_comparison import BF16, GRADIENT, VALUE, both, compare, kernels, least_of_loss, least_of_product, normal
from needs import PRECISIONS, needs_bf16, needs_kernels

pytestmark = needs_kernels

few = settings(max_examples=20, deadline=None)
sizes = st.tuples(st.integers(1, 90), st.integers(1, 70), st.integers(1, 70))


def close_in_float64(found, expected, size):
    """Within float32's rounding of sums of terms that add up to `size` without their signs."""
    assert np.abs(found - expected).max() <= 2e-6 * size.max()


def rounded(array):
    """To bf16: of the float32 bits the upper half, rounded to nearest, ties to even."""
    bits = array.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@few
@given(st.tuples(st.integers(1, 300), st.integers(1, 90)))
@example((1, 1))
@example((1100, 17))
def test_norms(shape):
    both("layer_norm", [normal(*shape) + 3, normal(shape[1], seed=1), normal(shape[1], seed=2)], (1e-5,), least=1.0)
    both("rms_norm", [normal(*shape), normal(shape[1], seed=1)], (1e-5,), least=1.0)


def linear_case(rows, width, out, bias, precision="fp32", value=VALUE, gradient=GRADIENT):
    weight = normal(out, width, seed=1, scale=width**-0.5)
    arrays = [normal(rows, width), weight, *([normal(out, seed=2)] if bias else [])]
    compare(lambda x, w, *b: kernels().linear(x, TrainedMatrix(w, precision), *b), portable.linear, arrays,
            value=value, gradient=gradient, **(least_of_product(*arrays[:2]) if precision == "bf16" else {}))


@few
@given(sizes, st.booleans())
@example((1, 1, 1), True)
@example((1100, 33, 65), True)
@example((130, 300, 520), False)
def test_linear(size, bias):
    linear_case(*size, bias)


@needs_bf16
@settings(max_examples=12, deadline=None)
@given(sizes, st.booleans())
@example((1, 1, 1), True)
@example((69, 1, 2), True)  # the terms of the gradient nearly cancel
@example((1100, 48, 80), True)
@example((2049, 33, 65), False)
@example((64, 128, 576), False)
def test_linear_in_bf16(size, bias):
    linear_case(*size, bias, "bf16", BF16, BF16)


@needs_bf16
@pytest.mark.parametrize("rows, width, out", [(5, 7, 9), (130, 64, 48), (1100, 48, 33)])
def test_products_in_bf16_are_those_of_rounded_numbers_added_in_float32(rows, width, out):
    x, w, upstream = normal(rows, width), normal(out, width, seed=1), normal(rows, out, seed=2)
    variables = [jt.array(x), jt.array(w)]
    y = kernels().linear(variables[0], TrainedMatrix(variables[1], "bf16"))
    dx, dw = jt.grad((y * jt.array(upstream)).sum(), variables)
    x, w, upstream = (rounded(array).astype(np.float64) for array in (x, w, upstream))
    for found, left, right in ((y, x, w.T), (dx, upstream, w), (dw, upstream.T, x)):
        close_in_float64(found.numpy(), left @ right, np.abs(left) @ np.abs(right))


def cross_entropy_case(rows, width, size, precision="fp32", value=VALUE, gradient=GRADIENT, smoothing=0.0,
                       differentiate=None):
    hidden, head, weights = normal(rows, width), normal(size, width, seed=1), np.abs(normal(rows, seed=3)) + 0.1
    least = least_of_loss(hidden, head, weights, precision)
    labels, weights = jt.array(np.random.RandomState(2).randint(0, size, rows).astype(np.int32)), jt.array(weights)
    compare(lambda h, w: kernels().token_cross_entropy(h, TrainedMatrix(w, precision), labels, weights, smoothing),
            lambda h, w: portable.token_cross_entropy(h, w, labels, weights, smoothing),
            [hidden, head], differentiate, value, gradient, **least)


@few
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2500), st.sampled_from([0.0, 0.1]))
@example(1, 1, 1, 0.0)
@example(300, 24, 1025, 0.1)
def test_cross_entropy(rows, width, size, smoothing):
    cross_entropy_case(rows, width, size, smoothing=smoothing)


@needs_bf16
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 2500), st.sampled_from([0.0, 0.1]))
@example(300, 24, 1025, 0.1)
@example(70, 64, 2048, 0.0)
def test_cross_entropy_in_bf16(rows, width, size, smoothing):
    cross_entropy_case(rows, width, size, "bf16", BF16, BF16, smoothing)


def test_a_head_trains_on_states_that_do_not():
    cross_entropy_case(9, 12, 30, differentiate=[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tied_head_adds_to_the_gradient_of_the_embedding(precision):
    ids = np.array([3, 1, 3, 3, 0, 29], np.int32)
    labels, weights = jt.array(ids[::-1].copy()), jt.ones(6)

    def loss(operations, matrix):
        def computed(w):
            hidden = operations.embedding(TrainedMatrix(w, precision), ids)
            return operations.token_cross_entropy(hidden, matrix(w), labels, weights)

        return computed

    tolerance = {"fp32": GRADIENT, "bf16": BF16}[precision]
    compare(loss(kernels(), lambda w: TrainedMatrix(w, precision)), loss(portable, lambda w: w), [normal(30, 12)],
            value=tolerance, gradient=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_number_of_threads_gives_the_same_bits(precision):
    def results():
        arrays = [jt.array(normal(*shape, seed=i, scale=0.3)) for i, shape in enumerate(
            ((333, 96), (200, 96), (200,), (96,), (96,), (1500, 200)))]
        x, w, bias, scale, shift, head = arrays
        y = kernels().linear(kernels().layer_norm(x, scale, shift, 1e-5), TrainedMatrix(w, precision), bias)
        hidden = kernels().rms_norm(y[:150], bias, 1e-5)
        loss = kernels().token_cross_entropy(hidden, TrainedMatrix(head, precision),
                                             jt.array(np.arange(150, dtype=np.int32)), jt.ones(150))
        return [loss.numpy(), *(g.numpy() for g in jt.grad(loss, arrays))]

    before, found = threads(), []
    try:
        for count in (1, 2, 3, 5):
            set_threads(count)
            found.append([r.tobytes() for r in results()])
    finally:
        set_threads(before)
    assert all(bits == found[0] for bits in found[1:])


def test_arrays_of_other_types_get_the_definition():
    x, w = (jt.array(normal(*shape, seed=i)).float16() for i, shape in enumerate(((4, 6), (5, 6))))
    y = kernels().linear(x, TrainedMatrix(w))
    np.testing.assert_allclose(y.numpy(), x.numpy() @ w.numpy().T, rtol=1e-2, atol=1e-2)
