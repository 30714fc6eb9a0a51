"""The reader that has stock operators alone: several groups in one pass, in one cache."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.inference.portable_reader import PortableReader
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import first_texts
from jittor_lora.model.load import build_model


@pytest.fixture(params=["gpt2", "llama"], scope="module")
def model(request):
    source = tiny.VARIANTS[request.param]
    with ops.portable_operations():
        yield build_model(tiny.config(source), tiny.tensors(source))


def ids(count: int, seed: int) -> list[int]:
    return tiny.tokens(count, seed).tolist()


def at_once(model, text: list[int]) -> np.ndarray:
    """The logits after each token of a text, without a cache."""
    hidden = model.hidden(np.array(text, np.int32), np.arange(len(text), dtype=np.int32), Layout.plain(len(text)))
    return model.logits(hidden).numpy()


def check(model, found: np.ndarray, texts: list[list[int]]) -> None:
    expected = np.stack([at_once(model, text)[-1] for text in texts])
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_groups_of_any_form_in_one_pass(model):
    reader = PortableReader(model)
    prefixes = [ids(5, 1), [], ids(2, 2)]
    branches = [[ids(2, 3), ids(4, 4)], [ids(3, 5)], [ids(1, 6), ids(1, 7), ids(2, 8)]]
    groups = [reader.open(len(prefix), [len(b) + 2 for b in own]) for prefix, own in zip(prefixes, branches)]
    found = reader.logits([Turn(group, prefix, list(enumerate(own)))
                           for group, prefix, own in zip(groups, prefixes, branches)])
    check(model, found, [prefix + b for prefix, own in zip(prefixes, branches) for b in own])
    # Another step, of some branches, in another order, beside a group that reads its prefix alone.
    other = reader.open(4, [2])
    found = reader.logits([Turn(groups[2], (), [(2, [9]), (0, [3])]), Turn(other, ids(4, 9), ()),
                           Turn(groups[0], (), [(1, ids(2, 10))])])
    check(model, found, [prefixes[2] + branches[2][2] + [9], prefixes[2] + branches[2][0] + [3],
                         prefixes[0] + branches[0][1] + ids(2, 10)])
    check(model, reader.logits([Turn(other, (), [(0, [1])])]), [ids(4, 9) + [1]])
    assert reader.likeliest([Turn(other, (), [(0, [2])])]) == at_once(model, ids(4, 9) + [1, 2])[-1].argmax()


def test_rows_of_groups_that_are_gone_are_used_again(model):
    reader = PortableReader(model)
    first, second, third = (reader.open(room, []) for room in (4, 6, 3))
    reader.logits([Turn(second, ids(6, 1), ())])
    del first
    gc.collect()
    small, large = reader.open(2, [2]), reader.open(0, [9])
    assert small.start == 0 and large.start == 13
    texts = [ids(3, 2), ids(9, 3)]
    check(model, reader.logits([Turn(small, texts[0][:2], [(0, texts[0][2:])]), Turn(large, (), [(0, texts[1])])]),
          texts)
    forked = reader.fork(second, 5, [1])
    check(model, reader.logits([Turn(forked, (), [(0, [7])])]), [ids(6, 1)[:5] + [7]])
    assert reader._cache.capacity >= 13 + 9 + 7
    del second, third, small, large, forked
    gc.collect()
    assert reader._cache.capacity == 0


def test_what_was_read_is_put_into_a_group_further_down_the_cache(model):
    reader = PortableReader(model)
    text = ids(20, 4)
    group = reader.open(len(text), [])
    reader.logits([Turn(group, text, ())])
    again = reader.open(len(text), [1])
    reader.restore(again, [reader.block(group, number) for number in range(2)], len(text))
    check(model, reader.logits([Turn(again, (), [(0, [5])])]), [text + [5]])
    expected = at_once(model, text + ids(3, 5))
    longer = reader.open(len(text) + 3, [])
    reader.restore(longer, [reader.block(group, number) for number in range(2)], len(text))
    np.testing.assert_allclose(reader.every_row(longer, ids(3, 5)), expected[-3:], atol=1e-5 * np.abs(expected).max())


def test_compiling_is_announced_only_where_it_happens():
    with ops.portable_operations():
        assert "compiles operators" in first_texts()
    if ops.has_kernel("decoding"):
        assert first_texts() == "Still working on the first texts."
