"""The last block computes only what the rows asked for need, and nothing changes in them or in the gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from jittor_lora.data.layout import Group, Layout, Segment
from jittor_lora.lora.config import ALL_LINEAR, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt

LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=3)


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen3"])
def adapted(request):
    source = tiny.VARIANTS[request.param]
    model = build_model(tiny.config(source), tiny.tensors(source))
    adapter = inject(model, LoraConfig(4, 8.0, 0.0, ALL_LINEAR, "gaussian", False))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return model, adapter


def stream(lengths):
    layout = Layout.of_lengths(lengths)
    positions = [p for prefix, branches in lengths
                 for p in (*range(prefix), *(prefix + i for length in branches for i in range(length)))]
    return tiny.tokens(layout.rows), np.array(positions, np.int32), layout


def hidden_and_gradients(adapted, hidden):
    """Of a sum of squares with weights that differ from row to row and column to column."""
    model, adapter = adapted
    weights = np.random.RandomState(1).rand(*hidden.shape).astype(np.float32)
    parameters = adapter.parameters()
    gradients = jt.grad((hidden * hidden * jt.array(weights)).sum(), list(parameters.values()))
    return hidden.numpy(), {name: g.numpy() for name, g in zip(parameters, gradients)}


def assert_the_same(adapted, lengths, rows):
    model, rows = adapted[0], np.asarray(rows, np.int32)
    tokens, positions, layout = stream(lengths)
    trimmed, trimmed_gradients = hidden_and_gradients(adapted, model.hidden(tokens, positions, layout, rows))
    whole, gradients = hidden_and_gradients(adapted, model.hidden(tokens, positions, layout)[jt.array(rows)])
    np.testing.assert_allclose(trimmed, whole, atol=2e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(trimmed_gradients[name], gradient, atol=1e-4 * max(1, np.abs(gradient).max()),
                                   err_msg=name)


@settings(max_examples=12)
@given(st.data())
def test_rows_of_random_layouts(adapted, data):
    lengths = data.draw(LENGTHS)
    count = sum(prefix + sum(branches) for prefix, branches in lengths)
    assert_the_same(adapted, lengths, sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=6))))


@pytest.mark.parametrize("rows", [
    [3],  # the prefix's last row alone
    [4, 5, 13],
    [0, 2],  # of the first group's prefix; none of the second group
    [16],  # of the last group alone
    list(range(17)),
])
def test_rows(adapted, rows):
    assert_the_same(adapted, [(4, [2, 3]), (5, []), (2, [1])], rows)


def rows_through_last_block(model, monkeypatch, *arguments):
    """How many rows each layer of the last block computes."""
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[-1]
    seen = {}
    for holder in (block.attn, block.mlp) if hasattr(block, "attn") else (block.self_attn, block.mlp):
        for name, layer in vars(holder).items():
            if hasattr(layer, "versions"):
                def noted(x, rows, name=name, run=layer.execute):
                    seen[name] = x.shape[0]
                    return run(x, rows)

                monkeypatch.setattr(layer, "execute", noted)
    model.hidden(*arguments)
    return seen


@pytest.mark.parametrize("rows, count", [([2, 8], 2), (None, 9), (list(range(9)), 9)])
def test_only_keys_and_values_are_computed_of_all_rows(adapted, monkeypatch, rows, count):
    seen = rows_through_last_block(adapted[0], monkeypatch, *stream([(4, [2, 3])]), rows)
    of_all = {name for name in seen if name in ("c_attn", "k_proj", "v_proj")}
    assert {seen[name] for name in of_all} == {9}
    assert len(seen) - len(of_all) >= 2 and {seen[name] for name in seen.keys() - of_all} == {count}


def test_with_a_cache(adapted):
    """A prompt read into a cache, its last rows asked for, then one row more that sees all of it."""
    model = adapted[0]
    tokens, positions, layout = stream([(5, [3, 2])])
    with jt.no_grad():
        expected = model.hidden(tokens, positions, layout).numpy()
        cache = model.new_cache(12)
        prompt = Group(0, 9, 0, 12, (Segment(0, 5, 0, 0, 0, 5), Segment(5, 8, 0, 5, 5, 8), Segment(8, 9, 0, 5, 8, 9)))
        read = model.hidden(tokens[:9], positions[:9], Layout([prompt]), [4, 7], cache, range(9))
        np.testing.assert_allclose(read.numpy(), expected[[4, 7]], atol=2e-5)
        more = model.hidden(tokens[9:], positions[9:], Layout([Group(0, 1, 0, 12, (Segment(0, 1, 0, 5, 8, 10),))]),
                            [0], cache, [9])
        np.testing.assert_allclose(more.numpy(), expected[9:], atol=2e-5)


@pytest.mark.parametrize("rows", [[], [9], [-1], [*range(8), 9], [4, 2], [2, 2]])
def test_rows_that_are_not_there(adapted, rows):
    with pytest.raises(ValueError, match="from 0 to 8"):
        adapted[0].hidden(*stream([(4, [2, 3])]), rows)
