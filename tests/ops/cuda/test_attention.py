"""Attention of the CUDA backend against its definition, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuda_emulator import DESCENDING, SHUFFLED, launches, thread_order
from jittor_lora.data.layout import Layout
from jittor_lora.ops import AttentionPlan, fused, portable
from jittor_lora.ops.cuda import attention
from jittor_lora.system.runtime import jt
from kernel_comparison import BF16, both, normal
from layouts import attention_case, chosen_rows, layout_of, lengths

pytestmark = pytest.mark.usefixtures("on_the_emulator")
few = settings(max_examples=12, deadline=None)
TOLERANCES = {"fp32": {}, "bf16": {"value": BF16, "gradient": BF16}}
precisions = pytest.mark.parametrize("precision", TOLERANCES)
MANY = [(5, [1] * 40)]
MIXED = [(0, [3, 70, 1]), (130, []), (64, [64, 1])]


@few
@given(lengths, st.integers(1, 2), st.integers(1, 3), st.integers(1, 20), chosen_rows)
@example([(1, [])], 1, 1, 1, None)
@example([(0, [1])], 2, 3, 64, [0])
@example(MANY, 2, 1, 16, [2, 3, 44])
@example(MIXED, 1, 3, 64, None)
def test_attention(groups, heads, share, d, chosen):
    attention_case(groups, heads, share, d, chosen)


@few
@given(lengths, st.integers(1, 2), st.integers(1, 3), st.sampled_from([16, 48, 64, 80]), chosen_rows)
@example([(1, [])], 1, 1, 16, None)
@example(MANY, 2, 1, 16, [2, 3, 44])
@example(MIXED, 1, 3, 64, None)
def test_attention_in_bf16(groups, heads, share, d, chosen):
    attention_case(groups, heads, share, d, chosen, "bf16", **TOLERANCES["bf16"])


@precisions
@pytest.mark.parametrize("length", [63, 64, 65, 129])
def test_lengths_at_the_borders_of_tiles(length, precision):
    attention_case([(length, [])], 1, 1, 16, None, precision, **TOLERANCES[precision])
    attention_case([(length, [length, 1])], 1, 1, 16, [0, 62, 63, 64, length, 2 * length], precision,
                   **TOLERANCES[precision])


@precisions
@pytest.mark.parametrize("d", [63, 65, 80, 112, 128, 130, 256])
def test_sizes_of_heads(d, precision):
    attention_case([(70, [3, 9])], 1, 2, d, None, precision, **TOLERANCES[precision])
    attention_case([(70, [3, 9])], 2, 1, d, [1, 69, 72, 75], precision, **TOLERANCES[precision])


@precisions
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_another_scale(scale, precision):
    attention_case([(70, [9, 3]), (0, [5])], 2, 1, 16, [1, 40, 72, 85], precision, scale, **TOLERANCES[precision])


@precisions
def test_a_longer_text(precision):
    attention_case([(500, [])], 1, 1, 16, None, precision, **TOLERANCES[precision])


def test_large_and_very_negative_scores():
    plan = AttentionPlan(Layout.plain(9, 70))
    both("attention", [normal(79, 2, 8, scale=6), normal(79, 2, 8, seed=1, scale=6), normal(79, 2, 8, seed=2)], (plan,))
    ones = np.ones((79, 2, 8), np.float32)
    both("attention", [-10 * ones, 10 * ones, normal(79, 2, 8)], (plan,), [2])
    far, values = jt.array(1e5 * ones), jt.array(normal(79, 2, 8))
    y = fused.attention(-far, far, values, plan)
    np.testing.assert_allclose(y.numpy(), portable.attention(-far, far, values, plan).numpy(), rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(gradient.numpy()).all() for gradient in jt.grad(y.sum(), [far, values]))


def results(groups, heads, share, d, chosen=None, precision="fp32"):
    """The output and the gradients of both operations, as bytes."""
    layout, rows = layout_of(groups, chosen)
    plan, n = AttentionPlan(layout, precision), layout.groups[-1].k1
    picked = None if chosen is None else jt.array(rows.astype(np.int32))
    found = []
    for run, arrays in [
        (lambda q, k, v: fused.attention(q, k, v, plan),
         [normal(len(rows), heads * share, d), normal(n, heads, d, seed=1), normal(n, heads, d, seed=2)]),
        (lambda qkv: fused.fused_attention(qkv, heads, plan, picked), [normal(n, 3 * heads * d, seed=3)]),
    ]:
        variables = [jt.array(array) for array in arrays]
        y = run(*variables)
        gradients = jt.grad((y * jt.array(normal(*y.shape, seed=4))).sum(), variables)
        found += [y.numpy().tobytes(), *(gradient.numpy().tobytes() for gradient in gradients)]
    return found


@precisions
@pytest.mark.parametrize("order", [DESCENDING, SHUFFLED])
@pytest.mark.parametrize("d", [48, 80])
def test_the_order_of_threads_does_not_matter(d, order, precision):
    case = MIXED, 1, 2, d, [3, 70, 100, 150, 290], precision
    expected = results(*case)
    with thread_order(order):
        assert results(*case) == expected


@precisions
def test_a_nan_reaches_the_rows_that_see_it(precision):
    plan = AttentionPlan(Layout.of_lengths([(100, [40, 40])]), precision)
    branch = range(110, 140)
    for name, array, row, concerned in [("q", 0, 70, [70]), ("k", 1, 110, branch), ("v", 2, 110, branch)]:
        arrays = [normal(180, 1, 16, seed=seed) for seed in range(3)]
        arrays[array][row, 0, 3] = np.nan
        nan = np.isnan(fused.attention(*map(jt.array, arrays), plan).numpy()).any(1)
        assert nan[list(concerned)].all(), name
        assert not nan[:64].any(), name  # another tile
        variables = [jt.array(each) for each in arrays]
        gradients = jt.grad(fused.attention(*variables, plan).sum(), variables)
        assert np.isnan(gradients[0].numpy()).any(2)[list(concerned)].all(), name


def started(run) -> int:
    before = launches()
    run()
    return launches() - before


@precisions
def test_few_launches(precision):
    plan = AttentionPlan(Layout.plain(40, 100), precision)
    q, k, v = jt.array(normal(140, 4, 16)), jt.array(normal(140, 2, 16)), jt.array(normal(140, 2, 16))
    y = fused.attention(q, k, v, plan)
    assert started(y.sync) == 1
    gradients = jt.grad(y.sum(), [q, k, v])
    assert started(lambda: jt.sync(gradients)) <= 3


def test_large_heads_and_negative_scales_run_on_the_definition():
    plan, q = AttentionPlan(Layout.plain(3)), jt.array(normal(3, 1, 257))
    assert started(lambda: attention.attention(q, q, q, plan).sync()) == 0
    assert started(lambda: attention.fused_attention(jt.array(normal(3, 3 * 257)), 1, plan).sync()) == 0
    q = jt.array(normal(3, 1, 8))
    assert [started(attention.attention(q, q, q, plan, scale).sync) for scale in (-0.5, 0.0, 0.5)] == [0, 0, 1]
