"""Every fused kernel against its portable definition: values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jittor_lora.data.layout import Layout
from jittor_lora.ops import AttentionPlan, Matrix, as_var, portable
from jittor_lora.system.runtime import jt, set_threads, threads
from kernel_comparison import (
    BF16,
    GRADIENT,
    VALUE,
    both,
    close,
    compare,
    kernels,
    least_of_loss,
    least_of_product,
    normal,
)
from layouts import attention_case, chosen_rows, lengths
from needs import PRECISIONS, needs_bf16, needs_kernels

pytestmark = needs_kernels

few = settings(max_examples=20, deadline=None)


sizes = st.tuples(st.integers(1, 70), st.integers(1, 90))


@few
@given(sizes, st.integers(0, 50))
@example((1, 1), 0)
@example((3, 768), 1000)
def test_layer_norm(shape, mean):
    rows, width = shape
    both("layer_norm", [normal(rows, width) + np.float32(mean), normal(width, seed=1), normal(width, seed=2)], (1e-5,),
         [0], value=1e-5 + 1e-6 * mean, gradient=1e-4 + 1e-4 * mean, least=1.0)


@few
@given(sizes)
@example((1, 576))
def test_rms_norm(shape):
    # Of a narrow row the gradient is what is left of numbers of size 1.
    both("rms_norm", [normal(*shape), normal(shape[1], seed=1)], (1e-5,), [0], least=1.0)


def test_norms_with_weights_that_train_are_the_portable_ones():
    both("layer_norm", [normal(5, 12), normal(12, seed=1), normal(12, seed=2)], (1e-5,))
    both("rms_norm", [normal(5, 12), normal(12, seed=1)], (1e-5,))


@few
@given(sizes)
@example((400, 90))
def test_activations(shape):
    both("gelu_tanh", [normal(*shape, scale=4)])
    both("swiglu", [normal(*shape, scale=4), normal(*shape, seed=1)])


def test_activations_far_out():
    x = np.array([-1e9, -100, -20, -12, -1e-30, 0, 1e-30, 12, 20, 100, 1e9], np.float32)
    both("gelu_tanh", [x])
    both("swiglu", [x, np.ones_like(x)])


@pytest.mark.parametrize("operation", ["gelu_tanh", "silu"])
def test_not_a_number_stays(operation):
    x = np.array([1.0, np.nan, 2.0], np.float32)
    f = kernels()
    y = f.gelu_tanh(jt.array(x)) if operation == "gelu_tanh" else f.swiglu(jt.array(x), jt.array(np.ones_like(x)))
    assert np.isnan(y.numpy()).tolist() == [False, True, False]


@few
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 40))
def test_rotary(rows, heads, half):
    angles = normal(rows, half, seed=1)
    both("rotary", [normal(rows, heads, 2 * half), np.cos(angles), np.sin(angles)], (), [0])


def linear_case(rows, width, out, rank, bias, p, precision="fp32", value=VALUE, gradient=GRADIENT, frozen_input=False,
                row=0):
    weight = normal(out, width, seed=1, scale=width**-0.5)
    arrays = [normal(rows, width)]
    if rank:
        arrays += [normal(rank, width, seed=3, scale=width**-0.5), normal(out, rank, seed=4)]
    b = jt.array(normal(out, seed=2)).stop_grad() if bias else None
    matrix = Matrix.of(weight, precision)

    def with_kernel(x, a=None, b_=None):
        return kernels().lora_linear(x, matrix, b, a, b_, 2.0, p, 7, row)

    def defined(x, a=None, b_=None):
        if a is None:
            return portable.linear(x, jt.array(weight).stop_grad(), b)
        return portable.lora_linear(x, jt.array(weight).stop_grad(), b, a, b_, 2.0, p, 7, row)

    differentiate = [i for i in range(len(arrays)) if i or not frozen_input]
    compare(with_kernel, defined, arrays, differentiate, value, gradient,
            **(least_of_product(arrays[0], weight) if precision == "bf16" else {}))


@few
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 70), st.integers(0, 20), st.booleans(),
       st.sampled_from([0.0, 0.1, 0.5]))
@example(1, 1, 1, 1, True, 0.5)
@example(1024, 33, 65, 8, True, 0.1)
@example(700, 64, 48, 16, False, 0.0)
def test_linear_with_an_update(rows, width, out, rank, bias, p):
    linear_case(rows, width, out, rank, bias, p)


@few
@given(st.integers(120, 700), st.integers(1, 800), st.integers(1, 150))
@example(128, 1, 1)
@example(131, 257, 17)
@example(480, 512, 96)
@example(485, 1025, 97)
def test_linear_on_many_rows(rows, width, out):
    """A product and its gradient, in float64 and on different numbers of threads."""
    weight, x, upstream = normal(out, width, seed=1), normal(rows, width), normal(rows, out, seed=2)
    before, found = threads(), []
    try:
        for count in (1, 2, 5):
            set_threads(count)
            v = jt.array(x)
            y = kernels().linear(v, Matrix.of(weight))
            gradient = jt.grad((y * jt.array(upstream)).sum(), v)
            found.append((y.numpy(), gradient.numpy()))
    finally:
        set_threads(before)
    close(found[0][0], x.astype(np.float64) @ weight.T, VALUE)
    close(found[0][1], upstream.astype(np.float64) @ weight, VALUE)
    for y, gradient in found[1:]:
        assert y.tobytes() == found[0][0].tobytes() and gradient.tobytes() == found[0][1].tobytes()


def test_linear_with_a_mask_from_a_row_on():
    linear_case(40, 24, 30, 4, True, 0.3, row=1000)


def test_linear_below_which_nothing_trains():
    linear_case(40, 24, 30, 4, True, 0.3, frozen_input=True)


def test_linear_with_a_bias_that_trains():
    weight = normal(7, 9, seed=1)
    compare(lambda x, b: kernels().linear(x, Matrix.of(weight), b),
            lambda x, b: portable.linear(x, jt.array(weight).stop_grad(), b), [normal(5, 9), normal(7, seed=2)])


@needs_bf16
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9), st.sampled_from([0.0, 0.1]))
@example(1, 1, 1, 1, 0.0)
@example(600, 96, 64, 8, 0.1)
def test_linear_in_bf16(rows, width, out, rank, p):
    linear_case(rows, width, out, rank, True, p, "bf16", BF16, BF16)


@few
@given(lengths, st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), chosen_rows)
@example([(1, [])], 1, 1, 1, None)
@example([(0, [1])], 2, 3, 64, [0])
@example([(5, [1] * 40)], 2, 1, 16, [2, 3, 44])
@example([(0, [3, 70, 1]), (130, []), (64, [64, 1])], 1, 3, 64, None)
def test_attention(groups, heads, share, d, chosen):
    attention_case(groups, heads, share, d, chosen)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_attention_with_another_scale(scale, precision):
    tolerances = {"value": BF16, "gradient": BF16} if precision == "bf16" else {}
    attention_case([(70, [9, 3]), (0, [5])], 2, 1, 16, [1, 40, 72, 85], precision, scale, **tolerances)


def test_attention_of_a_long_text():
    attention_case([(1024, [])], 2, 1, 64)


@needs_bf16
@settings(max_examples=15, deadline=None)
@given(lengths, st.integers(1, 3), st.integers(1, 3), st.sampled_from([16, 24, 48, 64, 80]), chosen_rows)
@example([(1, [])], 1, 1, 16, None)
@example([(1, [])], 1, 2, 16, None)
@example([(5, [1] * 40)], 2, 1, 16, [2, 3, 44])
@example([(0, [3, 70, 1]), (130, []), (64, [64, 1])], 1, 3, 64, None)
@example([(1024, [])], 2, 1, 64, None)
def test_attention_in_bf16(groups, heads, share, d, chosen):
    attention_case(groups, heads, share, d, chosen, "bf16", value=BF16, gradient=BF16)


def test_attention_is_sharp_where_scores_are_large():
    layout = Layout.plain(9)
    arrays = [normal(9, 2, 8, scale=6), normal(9, 2, 8, seed=1, scale=6), normal(9, 2, 8, seed=2)]
    both("attention", arrays, (AttentionPlan(layout),))


def cross_entropy_case(rows, width, size, precision="fp32", value=VALUE, gradient=GRADIENT, smoothing=0.0):
    hidden, head = normal(rows, width), normal(size, width, seed=1)
    labels = np.random.RandomState(2).randint(0, size, rows).astype(np.int32)
    weights = np.abs(normal(rows, seed=3)) + 0.1
    matrix = Matrix.of(head, precision)
    compare(lambda h: kernels().token_cross_entropy(h, matrix, jt.array(labels), jt.array(weights), smoothing),
            lambda h: portable.token_cross_entropy(h, jt.array(head).stop_grad(), jt.array(labels), jt.array(weights),
                                                   smoothing),
            [hidden], None, value, gradient, **least_of_loss(hidden, head, weights, precision))


@few
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2500))
@example(1, 1, 1)
@example(1, 1, 614)  # the terms of the gradient nearly cancel
@example(300, 24, 1025)
@example(257, 48, 20000)
def test_cross_entropy(rows, width, size):
    cross_entropy_case(rows, width, size)


@needs_bf16
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 2500))
@example(300, 24, 1025)
def test_cross_entropy_in_bf16(rows, width, size):
    cross_entropy_case(rows, width, size, "bf16", BF16, BF16)


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
@pytest.mark.parametrize("rows, width, size", [(5, 16, 7), (300, 24, 1025), (40, 33, 2500)])
def test_cross_entropy_with_smoothed_labels(rows, width, size, smoothing):
    cross_entropy_case(rows, width, size, smoothing=smoothing)


@needs_bf16
@pytest.mark.parametrize("rows, width, size", [(5, 16, 70), (300, 24, 1025)])
def test_cross_entropy_with_smoothed_labels_in_bf16(rows, width, size):
    cross_entropy_case(rows, width, size, "bf16", BF16, BF16, smoothing=0.1)


@needs_bf16
def test_bf16_weights_are_read_for_packing_alone():
    reads = []

    def read(weight):
        reads.append(weight.shape)
        return weight

    matrix, head = (Matrix(lambda w=w: read(w), "bf16") for w in (normal(8, 4), normal(40, 8)))
    counts = []
    for _ in range(3):
        hidden = kernels().linear(jt.array(normal(5, 4)), matrix)
        kernels().token_cross_entropy(hidden, head, jt.array(np.arange(5, dtype=np.int32)), jt.ones(5)).sync()
        counts.append(len(reads))
    assert counts[0] == counts[2]


def test_cross_entropy_with_extreme_logits():
    head = np.array([[1.0], [-1.0], [0.5]], np.float32)
    hidden, labels = np.array([[5000.0], [-5000.0]], np.float32), np.array([1, 1], np.int32)
    loss = kernels().token_cross_entropy(jt.array(hidden), Matrix.of(head), jt.array(labels), jt.ones(2))
    assert loss.item() == pytest.approx(10000.0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_and_two_threads_give_the_same_bits(precision):
    def results():
        matrix, head = Matrix.of(normal(200, 96, seed=1), precision), Matrix.of(normal(5000, 200, seed=5), precision)
        x, a, b = (jt.array(v) for v in (normal(333, 96), normal(8, 96, seed=3), normal(200, 8, seed=4)))
        y = kernels().lora_linear(x, matrix, None, a, b, 2.0, 0.1, 3)
        layout = Layout.of_lengths([(100, [20, 30]), (0, [90, 93])])
        qkv = kernels().lora_linear(y, Matrix.of(normal(96, 200, seed=6), precision), None, None, None, 0.0)
        z = kernels().fused_attention(qkv, 4, AttentionPlan(layout))
        labels = np.arange(40, dtype=np.int32)
        hidden = kernels().linear(z[:40], Matrix.of(normal(200, 32, seed=7), precision))
        loss = kernels().token_cross_entropy(hidden, head, jt.array(labels), jt.array(np.ones(40, np.float32)))
        return [loss.numpy(), *(g.numpy() for g in jt.grad(loss, [x, a, b]))]

    before = threads()
    try:
        found = []
        for count in (1, 2, 3):
            set_threads(count)
            found.append([r.tobytes() for r in results()])
    finally:
        set_threads(before)
    assert found[0] == found[1] == found[2]


@few
@given(sizes, st.integers(2, 4))
@example((300, 90), 3)
def test_sums_and_what_several_operations_share(shape, count):
    both("add", [normal(*shape), normal(*shape, seed=1)])

    def used(operation):
        def several(x, *factors):
            parts = [part * factor for part, factor in zip(operation(x, len(factors)), factors)]
            return sum(parts[1:], parts[0])
        return several

    arrays = [normal(*shape, seed=seed) for seed in range(count + 1)]
    compare(used(kernels().shared), used(portable.shared), arrays, [0])


def test_unused_parts_of_a_shared_array_add_nothing_to_its_gradient():
    x = jt.array(normal(3, 4))
    first, _, third = kernels().shared(x, 3)
    (gradient,) = jt.grad((first * 2.0 + third * 3.0).sum(), [x])
    np.testing.assert_array_equal(gradient.numpy(), np.full((3, 4), 5, np.float32))


@few
@given(sizes, st.data())
def test_rows(shape, data):
    index = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=40)), np.int32)
    chosen = as_var(index).stop_grad()
    compare(lambda x: kernels().rows(x, chosen), lambda x: portable.rows(x, chosen), [normal(*shape)])


def test_a_loss_is_divided_and_so_is_its_gradient():
    x = jt.array(normal(4, 5))
    loss = kernels().token_cross_entropy(x, Matrix.of(normal(11, 5, seed=1)), as_var(np.arange(4, dtype=np.int32)),
                                         as_var(np.ones(4, np.float32)))
    (whole,) = jt.grad(loss, [x], True)
    (part,) = jt.grad(kernels().loss_per(loss, 4.0), [x])
    np.testing.assert_allclose(part.numpy(), whole.numpy() / 4, rtol=1e-6)


@few
@given(st.lists(sizes, min_size=1, max_size=3), st.sampled_from([1.0, 0.37]))
@example([(400, 90)], 0.5)
def test_a_step_of_adamw(shapes, factor):
    draws = [[normal(*shape, seed=4 * i + j) for i, shape in enumerate(shapes)] for j in range(4)]
    draws[3] = [second**2 for second in draws[3]]
    rates = [1e-2 * 10**i for i in range(len(shapes))]
    arguments = (0.9, 0.999), [1.0 - 0.1 * rate for rate in rates], rates, 0.7, 1e-8, factor
    found, expected = (operation(*([jt.array(x) for x in arrays] for arrays in draws), *arguments)
                       for operation in (kernels().adamw, portable.adamw))
    for ours, theirs in zip(found, expected):
        assert len(ours) == len(theirs) == len(shapes)
        for f, e in zip(ours, theirs):
            np.testing.assert_allclose(f.numpy(), e.numpy(), rtol=2e-6, atol=1e-6)


@few
@given(st.lists(sizes, min_size=1, max_size=4))
def test_squared_norms(shapes):
    arrays = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    found = kernels().squared_norms([jt.array(array) for array in arrays]).numpy()
    np.testing.assert_allclose(found, [np.square(array, dtype=np.float64).sum() for array in arrays], rtol=1e-4)


@pytest.mark.parametrize("operation", ["add", "rows", "adamw"])
def test_arrays_and_steps_have_the_same_bits_on_any_number_of_threads(operation):
    x, y = normal(700, 90), normal(700, 90, seed=1)
    before, results = threads(), []
    try:
        for count in (1, 3):
            set_threads(count)
            a, b = jt.array(x), jt.array(y)
            if operation == "adamw":
                made = kernels().adamw([a], [b], [b], [b * b], (0.9, 0.999), [0.9], [0.1], 0.5, 1e-8, 0.5)[0][0]
            else:
                index = as_var(np.arange(600, dtype=np.int32))
                made = kernels().add(a, b) if operation == "add" else kernels().rows(a, index)
            results.append(made.numpy().tobytes())
    finally:
        set_threads(before)
    assert results[0] == results[1]


def test_an_array_of_one_number_is_no_constant():
    for value in (np.array([7], np.int32), np.array([0.5], np.float32)):
        found = as_var(value)
        assert tuple(found.shape) == (1,)
        assert found.numpy().tolist() == value.tolist()
