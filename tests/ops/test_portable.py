from __future__ import annotations

import math
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.model.rotary import frequencies
from jittor_lora.ops import AttentionPlan, portable, portable_attention
from jittor_lora.system.runtime import jt

EPS = 1e-5


def normal(*shape, seed=0, scale=1.0):
    return (np.random.RandomState(seed).standard_normal(shape) * scale).astype(np.float32)


def numeric_gradient(function, x, h=1e-5):
    """Central differences of a scalar function, in float64."""
    x = x.astype(np.float64)
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        x[i] += h
        up = function(x)
        x[i] -= 2 * h
        gradient[i] = (up - function(x)) / (2 * h)
        x[i] += h
    return gradient


def check(op, reference, inputs, differentiate=None, tolerance=2e-6, gradient_tolerance=5e-6):
    """`op` on Jittor arrays against `reference` on float64: the value, and the gradient of a random sum of it."""
    arrays = [jt.array(x) for x in inputs]
    value = op(*arrays)
    exact = reference(*[x.astype(np.float64) for x in inputs])
    assert tuple(value.shape) == exact.shape
    np.testing.assert_allclose(value.numpy(), exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())
    probe = normal(*exact.shape, seed=99)
    wanted = range(len(inputs)) if differentiate is None else differentiate
    gradients = jt.grad((value * jt.array(probe)).sum(), [arrays[i] for i in wanted])
    for i, gradient in zip(wanted, gradients):
        def scalar(x, i=i):
            changed = [x if j == i else y.astype(np.float64) for j, y in enumerate(inputs)]
            return float((reference(*changed) * probe).sum())

        expected = numeric_gradient(scalar, inputs[i])
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=0,
                                   atol=gradient_tolerance * max(1.0, np.abs(expected).max()))


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + EPS) * weight + bias


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_layer_norm():
    check(lambda x, w, b: portable.layer_norm(x, w, b, EPS), layer_norm,
          [normal(5, 12), normal(12, seed=1), normal(12, seed=2)])


def test_layer_norm_keeps_its_digits_on_rows_with_a_large_mean():
    x = (1000.0 + normal(4, 64)).astype(np.float32)
    weight, bias = np.ones(64, np.float32), np.zeros(64, np.float32)
    found = portable.layer_norm(jt.array(x), jt.array(weight), jt.array(bias), EPS).numpy()
    # The mean in float32 is good to 3e-5 here; the one-pass variance would be off by whole units.
    np.testing.assert_allclose(found, layer_norm(x.astype(np.float64), weight, bias), atol=2e-4)


def test_layer_norm_of_a_constant_row_is_the_bias():
    bias = normal(8)
    found = portable.layer_norm(jt.array(np.full((1, 8), 3.0, np.float32)), jt.ones(8), jt.array(bias), EPS).numpy()
    np.testing.assert_array_equal(found[0], bias)


def test_rms_norm():
    check(lambda x, w: portable.rms_norm(x, w, EPS),
          lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w, [normal(5, 12), normal(12, seed=1)])


ACTIVATIONS = {
    "gelu_tanh": gelu_tanh,
    "gelu_erf": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = np.concatenate([np.linspace(-9, 9, 40), normal(20) * 0.1]).astype(np.float32).reshape(6, 10)
    check(getattr(portable, name), ACTIVATIONS[name], [x], gradient_tolerance=1e-5)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "tanh"])
def test_activations_far_out_are_the_identity_or_zero(name):
    far = np.array([25, 40, 100, 1e3, 1e4], np.float32)
    x = jt.array(np.concatenate([-far, far]))
    y = getattr(portable, name)(x)
    np.testing.assert_allclose(y.numpy(), np.r_[0 * far, far], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jt.grad(y.sum(), x).numpy(), np.r_[0 * far, 0 * far + 1], atol=1e-5)


def test_gelu_is_right_to_the_digit_where_it_vanishes():
    x = np.linspace(-6.5, -3, 50, dtype=np.float32)
    exact = x.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)
    np.testing.assert_allclose(portable.gelu_tanh(jt.array(x)).numpy(), exact / (1 + np.exp(-2 * u)), rtol=1e-5)


def test_swiglu():
    check(portable.swiglu, lambda g, u: g / (1 + np.exp(-g)) * u, [normal(4, 6), normal(4, 6, seed=1)])


@pytest.mark.parametrize("rows", [1, 5])
def test_linear(rows):
    check(portable.linear, lambda x, w, b: x @ w.T + b, [normal(rows, 6), normal(9, 6, seed=1), normal(9, seed=2)])


def test_linear_without_bias():
    check(portable.linear, lambda x, w: x @ w.T, [normal(3, 6), normal(9, 6, seed=1)])


def test_lora_linear():
    def reference(x, w, bias, a, b):
        return x @ w.T + bias + 2.5 * (x @ a.T @ b.T)

    check(lambda x, w, bias, a, b: portable.lora_linear(x, w, bias, a, b, 2.5), reference,
          [normal(4, 6), normal(9, 6, seed=1), normal(9, seed=2), normal(2, 6, seed=3), normal(9, 2, seed=4)])


def test_dropout_of_lora_linear_reaches_the_update_alone():
    mask = portable.dropout_mask(4, 6, 0.5, 7).numpy()
    assert 0 < (mask == 0).sum() < mask.size

    def reference(x, w, a, b):
        return x @ w.T + 2.5 * ((x * mask) @ a.T @ b.T)

    check(lambda x, w, a, b: portable.lora_linear(x, w, None, a, b, 2.5, 0.5, 7), reference,
          [normal(4, 6), normal(9, 6, seed=1), normal(2, 6, seed=3), normal(9, 2, seed=4)])


def test_without_a_seed_there_is_no_dropout():
    arrays = [jt.array(a) for a in (normal(4, 6), normal(9, 6), normal(2, 6), normal(9, 2))]
    x, w, a, b = arrays
    np.testing.assert_array_equal(portable.lora_linear(x, w, None, a, b, 2.5, 0.5, None).numpy(),
                                  portable.lora_linear(x, w, None, a, b, 2.5).numpy())


def exact_mask(rows, columns, p, seed):
    first, second = np.random.SeedSequence(seed).generate_state(2, np.uint32)

    def mix(h):
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
        return h ^ (h >> np.uint32(16))

    counter = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    bits = mix(mix(counter ^ first) ^ second) & np.uint32(0x7FFFFFFF)
    return np.where(bits >= p * 2.0**31, np.float32(1 / (1 - p)), np.float32(0))


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**40])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99])
def test_dropout_mask_is_the_hash_it_says(p, seed):
    np.testing.assert_array_equal(portable.dropout_mask(37, 53, p, seed).numpy(), exact_mask(37, 53, p, seed))


def test_a_dropout_mask_from_a_row_on_is_that_part_of_the_whole():
    whole = portable.dropout_mask(40, 6, 0.5, 7).numpy()
    np.testing.assert_array_equal(portable.dropout_mask(30, 6, 0.5, 7, 10).numpy(), whole[10:])
    x, a, b = jt.array(normal(30, 6)), jt.array(normal(2, 6, seed=3)), jt.array(normal(9, 2, seed=4))
    expected = 2.5 * (x.numpy() * whole[10:]) @ a.numpy().T @ b.numpy().T
    np.testing.assert_allclose(portable.low_rank(x, a, b, 2.5, 0.5, 7, 10).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_dropout_mask_statistics():
    rows, columns, p = 600, 500, 0.1
    dropped = portable.dropout_mask(rows, columns, p, 3).numpy() == 0
    sigma = math.sqrt(p * (1 - p))
    assert abs(dropped.mean() - p) < 4 * sigma / math.sqrt(dropped.size)
    for axis, count in ((0, rows), (1, columns)):  # the spread of the rows' and columns' shares is a binomial's
        spread = dropped.mean(axis).std() / (sigma / math.sqrt(count))
        assert 0.85 < spread < 1.15
    # neighbours, in both directions, drop together as often as strangers do
    for a, b in ((dropped[1:], dropped[:-1]), (dropped[:, 1:], dropped[:, :-1])):
        assert abs((a & b).mean() - p * p) < 4 * p / math.sqrt(a.size)


def test_dropout_masks_of_different_seeds_are_independent():
    masks = [portable.dropout_mask(300, 300, 0.5, seed).numpy() == 0 for seed in range(4)]
    for i in range(4):
        for j in range(i):
            assert abs((masks[i] & masks[j]).mean() - 0.25) < 4 * math.sqrt(0.1875 / masks[i].size)


def test_a_dropout_next_to_one_drops_all_but_a_few():
    assert (portable.dropout_mask(50, 50, 1 - 1e-12, 0).numpy() == 0).all()


def test_rotary():
    positions, theta, half = np.array([0, 1, 7, 40]), 100.0, 3

    def reference(x):
        angle = positions[:, None] * theta ** (-np.arange(half) / half)
        turn = np.exp(1j * angle)[:, None, :]
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], -1)

    tables = portable.rotary_tables(positions, frequencies(2 * half, theta))
    check(lambda x: portable.rotary(x, *tables), reference, [normal(4, 2, 2 * half)], tolerance=5e-6)


# --- attention -------------------------------------------------------------------------------------------------------


def dense_attention(q, k, v, seen, scale):
    """The definition, in float64; and its derivatives for the upstream gradient `u`."""
    share = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, share, 1), np.repeat(v, share, 1)
    scores = np.einsum("nhd,mhd->hnm", q, k) * scale
    scores = np.where(seen[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hnm,mhd->nhd", weights, v), weights, k, v


def dense_attention_gradients(q, k, v, seen, scale, u):
    groups, share = k.shape[1], q.shape[1] // k.shape[1]
    _, weights, k, v = dense_attention(q, k, v, seen, scale)
    dv = np.einsum("hnm,nhd->mhd", weights, u)
    dw = np.einsum("nhd,mhd->hnm", u, v)
    ds = weights * (dw - (weights * dw).sum(-1, keepdims=True)) * scale
    dq, dk = np.einsum("hnm,mhd->nhd", ds, k), np.einsum("hnm,nhd->mhd", ds, q)

    def gathered(x):
        return x.reshape(x.shape[0], groups, share, -1).sum(2)

    return dq, gathered(dk), gathered(dv)


def check_attention(groups, heads, kv_heads, size=1.0, tolerance=1e-5, scale=None, chosen=None, fused=False):
    layout, seen = Layout.of_lengths(groups), tiny.seen_rows(groups)
    n, rows = layout.rows, None
    if chosen is not None:
        rows = np.unique(np.array(chosen) % n).astype(np.int32)
        layout, seen = layout.restricted(rows), seen[rows]
    arrays = [normal(n, count, 4, seed=i, scale=size) for i, count in enumerate((heads, kv_heads, kv_heads))]
    if fused:
        qkv = jt.array(np.concatenate([a.reshape(n, -1) for a in arrays], 1))
        found = portable.fused_attention(qkv, heads, AttentionPlan(layout), rows if rows is None else jt.array(rows),
                                         scale)
    if rows is not None:
        arrays[0] = arrays[0][rows]
    if not fused:
        variables = [jt.array(a) for a in arrays]
        found = portable.attention(*variables, AttentionPlan(layout), scale)
    exact = [a.astype(np.float64) for a in arrays]
    expected_scale = 0.5 if scale is None else scale  # 4 wide heads
    expected = dense_attention(*exact, seen, expected_scale)[0].reshape(len(seen), -1)
    np.testing.assert_allclose(found.numpy(), expected, atol=3e-6)
    probe = normal(len(seen), heads * 4, seed=9)
    truths = list(dense_attention_gradients(*exact, seen, expected_scale, probe.reshape(len(seen), heads, 4)))
    total = (found * jt.array(probe)).sum()
    if fused:
        if rows is not None:
            whole = np.zeros((n, heads, 4))
            whole[rows] = truths[0]
            truths[0] = whole
        gradients = np.split(jt.grad(total, qkv).numpy(), 3, 1)
        gradients = [g.reshape(n, heads, 4) for g in gradients]
    else:
        gradients = [g.numpy() for g in jt.grad(total, variables)]
    for gradient, truth in zip(gradients, truths):
        np.testing.assert_allclose(gradient, truth, atol=tolerance * max(1.0, np.abs(truth).max()))


GROUP = st.tuples(st.integers(0, 6), st.lists(st.integers(1, 5), max_size=4))
LENGTHS = st.lists(GROUP, min_size=1, max_size=3).filter(lambda groups: any(p or branches for p, branches in groups))
# Scores at a time: as on a CPU, as on a GPU, and between.
AT_A_TIME = st.sampled_from([0, 1 << 25, 150])


def at_a_time(scores: int):
    return mock.patch.object(portable_attention, "_scores_at_a_time", lambda: scores)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, AT_A_TIME, st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=4), st.booleans())
@example([(1, [])], 0, None, False)
@example([(0, [1])], 1 << 25, None, False)
@example([(0, [3, 2])], 1 << 25, None, True)
@example([(5, [])], 0, None, True)
@example([(6, [1, 1]), (0, [2])], 1 << 25, None, False)
@example([(6, [1, 1]), (0, [2]), (3, [])], 1 << 25, [4, 9], False)
@example([(6, [1, 1]), (0, [2]), (3, [])], 0, [0], True)
@example([(7, [1 + i % 3 for i in range(40)])], 0, None, False)
def test_attention(groups, scores, chosen, fused):
    with at_a_time(scores):
        check_attention(groups, 2, 2, chosen=chosen, fused=fused)


@pytest.mark.parametrize("scores", [0, 1 << 25, 150])
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (4, 1), (6, 3)])
def test_attention_of_grouped_queries(heads, kv_heads, scores):
    with at_a_time(scores):
        check_attention([(5, [3, 2]), (4, [])], heads, kv_heads)
        check_attention([(5, [3, 2]), (4, [1])], heads, kv_heads, chosen=[4, 6, 13])


def test_attention_of_long_groups_takes_each_query_head_by_itself():
    with mock.patch.object(portable_attention, "STACKED_ON_CPU", 100):
        check_attention([(5, [3, 2]), (4, []), (8, [7, 1])], 6, 3)
        check_attention([(5, [3, 2]), (4, []), (8, [7, 1])], 4, 1, chosen=[4, 6, 13, 20])


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_attention_with_another_scale(scale):
    check_attention([(5, [3, 2])], 4, 2, scale=scale)


def test_attention_with_scores_far_apart():
    check_attention([(5, [3, 2])], 2, 2, size=12.0, tolerance=1e-4)  # scores of some hundreds: exp must not overflow


PEAK = """
import resource, numpy as np
from jittor_lora.data.layout import Layout
from jittor_lora.ops import AttentionPlan, portable
from jittor_lora.system.runtime import jt

plan = AttentionPlan(Layout.plain(1500))
q, k, v = (jt.array(np.ones((1500, heads, 16), np.float32)) for heads in (8, 2, 2))
jt.sync([q, k, v, plan.batches(0)[0].mask])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = portable.attention(q, k, v, plan)
out.sync()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_attention_keeps_no_scores():
    done = subprocess.run([sys.executable, "-c", PEAK], stdout=subprocess.PIPE, check=True)
    scores_of_a_head = 1500 * 1500 * 4 / 1024  # KiB; there are two arrays of that at a time
    assert int(done.stdout.split()[-1]) < 5 * scores_of_a_head


@given(LENGTHS, AT_A_TIME, st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=4))
@example([(9, []), (8, [1]), (9, [])], 1 << 25, None)  # alike: padded
@example([(20, []), (1, []), (1, [])], 1 << 25, None)  # far from alike: together
@example([(2, []), (1, []), (3, [])], 0, [4])
def test_batches_hold_every_row_once(groups, most, chosen):
    layout = Layout.of_lengths(groups)
    if chosen is not None:
        layout = layout.restricted(np.unique(np.array(chosen) % layout.rows))
    batches = AttentionPlan(layout).batches(most)
    queries, keys, seen = [], [], np.zeros((layout.rows, layout.groups[-1].k1), bool)
    for batch in batches:
        q, k, mask = batch.queries.numpy(), batch.keys.numpy(), batch.mask.numpy()[0, :, 0]
        assert batch.scores == mask.size
        assert set(np.unique(mask)) <= {np.float32(0), np.float32(-1e30)}
        together = (q >= 0).sum() * (k >= 0).sum()
        assert batch.scores <= together and (len(batches) == 1 or batch.scores <= most or len(q) == 1)
        for rows, columns, part in zip(q, k, mask):
            assert (part[rows < 0] < 0).all() and (part[:, columns < 0] < 0).all()
            seen[np.ix_(rows[rows >= 0], columns[columns >= 0])] = part[rows >= 0][:, columns >= 0] == 0
        for index, places, found in ((q, batch.query_places.numpy(), queries), (k, batch.key_places.numpy(), keys)):
            placed = [index[block, place] if block >= 0 else -1 for block, place in places.T]
            found += [row if row >= 0 else None for row in placed]
    assert queries == list(range(layout.rows))
    unseen = {row for group in layout.groups if group.q0 == group.q1 for row in range(group.k0, group.k1)}
    assert keys == [None if row in unseen else row for row in range(layout.groups[-1].k1)]
    expected = np.zeros_like(seen)
    for group in layout.groups:
        expected[group.q0 : group.q1, group.k0 : group.k1] = group.mask()
    np.testing.assert_array_equal(seen, expected)


def test_groups_are_padded_or_put_together_whichever_is_less():
    def shapes(*lengths):
        return [(batch.queries.shape, batch.scores) for batch in AttentionPlan(Layout.plain(*lengths)).batches(1 << 25)]

    assert shapes(8, 7, 8) == [([3, 8], 3 * 64)]
    assert shapes(20, 1, 1) == [([1, 22], 22 * 22)]


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_squared_norms(count):
    arrays = [normal(3 + i % 4, 5, seed=i) for i in range(count)]
    arrays[0][1, 1], arrays[-1][2, 2] = np.inf, np.inf  # which stay where they are
    found = portable.squared_norms([jt.array(a) for a in arrays]).numpy()
    np.testing.assert_allclose(found, [np.square(a, dtype=np.float64).sum() for a in arrays], rtol=1e-6)


# --- cross-entropy ---------------------------------------------------------------------------------------------------


def exact_cross_entropy(hidden, head, labels, weights, smoothing=0.0):
    """The loss and its gradient for `hidden`, in float64."""
    hidden, head, weights = (x.astype(np.float64) for x in (hidden, head, weights))
    logits = hidden @ head.T
    top = logits.max(1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    odds = np.exp(logits - total[:, None])
    odds[np.arange(len(labels)), labels] -= 1 - smoothing
    odds -= smoothing / len(head)
    nll = total - logits[np.arange(len(labels)), labels]
    loss = (weights * ((1 - smoothing) * nll + smoothing * (total[:, None] - logits).mean(1))).sum()
    return loss, (odds @ head) * weights[:, None]


def check_cross_entropy(hidden, head, labels, weights, smoothing=0.0):
    h = jt.array(hidden)
    loss = portable.token_cross_entropy(h, jt.array(head).stop_grad(), jt.array(labels), jt.array(weights), smoothing)
    gradient = jt.grad(loss * 3.0, h)
    expected, expected_gradient = exact_cross_entropy(hidden, head, labels, weights, smoothing)
    assert tuple(loss.shape) == (1,)
    assert loss.item() == pytest.approx(expected, rel=2e-6, abs=1e-6)
    np.testing.assert_allclose(gradient.numpy(), 3 * expected_gradient, atol=5e-6 * np.abs(expected_gradient).max())


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 600])
def test_cross_entropy_at_the_borders_of_its_chunks(rows):
    assert portable.CROSS_ENTROPY_ROWS == 256
    labels = np.random.RandomState(0).randint(0, 31, rows).astype(np.int32)
    labels[0], labels[-1] = 0, 30
    check_cross_entropy(normal(rows, 8), normal(31, 8, seed=1), labels, np.abs(normal(rows, seed=2)) + 0.1)


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_cross_entropy_with_smoothed_labels(smoothing):
    labels = np.random.RandomState(0).randint(0, 31, 300).astype(np.int32)
    check_cross_entropy(normal(300, 8), normal(31, 8, seed=1), labels, np.abs(normal(300, seed=2)) + 0.1, smoothing)


def test_gradient_of_a_trained_head_with_smoothed_labels():
    hidden, head = normal(5, 8), normal(31, 8, seed=1)
    labels, weights = np.arange(5, dtype=np.int32), np.ones(5, np.float32)
    trained, step, rows = jt.array(head), 1e-4, [(0, 3), (4, 1), (17, 5)]
    loss = portable.token_cross_entropy(jt.array(hidden), trained, jt.array(labels), jt.array(weights), 0.2)
    gradient = jt.grad(loss, trained).numpy()
    for row, column in rows:
        sides = []
        for sign in (1, -1):
            moved = head.astype(np.float64)
            moved[row, column] += sign * step
            sides.append(exact_cross_entropy(hidden, moved, labels, weights, 0.2)[0])
        assert gradient[row, column] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-5)


def test_cross_entropy_of_zero_weights_is_zero_and_so_is_its_gradient():
    h = jt.array(normal(5, 8))
    loss = portable.token_cross_entropy(h, jt.array(normal(31, 8)), jt.array(np.arange(5, dtype=np.int32)), jt.zeros(5))
    assert loss.item() == 0
    assert not jt.grad(loss, h).numpy().any()


def test_cross_entropy_leaves_rows_of_zero_weight_alone():
    weights = np.array([1, 0, 0.5, 0, 2], np.float32)
    check_cross_entropy(normal(5, 8), normal(31, 8, seed=1), np.arange(5, dtype=np.int32), weights)


def test_cross_entropy_of_a_row_that_occurs_twice():
    """The last row of a prefix predicts the first token of each of its branches."""
    states, rows = normal(3, 8), np.array([0, 2, 2, 2], np.int32)
    labels, weights = np.array([4, 5, 6, 5], np.int32), np.array([1, 1, 2, 0.5], np.float32)
    head = normal(31, 8, seed=1)
    x = jt.array(states)
    loss = portable.token_cross_entropy(x[jt.array(rows)], jt.array(head), jt.array(labels), jt.array(weights))
    expected, gradient = exact_cross_entropy(states[rows], head, labels, weights)
    gathered = np.zeros((3, 8))
    np.add.at(gathered, rows, gradient)
    assert loss.item() == pytest.approx(expected, rel=2e-6)
    np.testing.assert_allclose(jt.grad(loss, x).numpy(), gathered, atol=1e-5)


def test_cross_entropy_of_huge_logits():
    check_cross_entropy(normal(5, 8, scale=40), normal(31, 8, seed=1, scale=5), np.arange(5, dtype=np.int32),
                        np.ones(5, np.float32))


def test_cross_entropy_is_the_same_with_and_without_a_tape():
    labels, weights = np.arange(5, dtype=np.int32), np.ones(5, np.float32)
    arguments = [jt.array(x) for x in (normal(5, 8), normal(31, 8), labels, weights)]
    with jt.no_grad():
        alone = portable.token_cross_entropy(*arguments).item()
    assert alone == portable.token_cross_entropy(*arguments).item()
