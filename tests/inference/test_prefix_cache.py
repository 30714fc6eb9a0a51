"""Keys and values of prefixes: what is known, what is restored, and what goes first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from jittor_lora import ops
from jittor_lora.inference.prefix_cache import OVERHEAD, PrefixCache
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.model.load import build_model
from needs import needs_kernels

SIZE = 4  # tokens per block


class Rows:
    """Stands for a reader: the keys and values of a token are all tokens up to it."""

    block_rows, row_bytes = SIZE, 100

    def block(self, tokens, number):
        rows = np.full((SIZE, 16), -1)
        for at in range(number * SIZE, min(len(tokens), (number + 1) * SIZE)):
            rows[at % SIZE, : min(16, at + 1)] = tokens[: at + 1][-16:]
        return rows

    def restore(self, group, blocks, length):
        assert len(blocks) == -(-length // SIZE)
        group += np.concatenate(blocks)[:length].tolist()


BLOCK = Rows().block([1], 0).nbytes + OVERHEAD


def rows_of(tokens):
    return [row for number in range(-(-len(tokens) // SIZE)) for row in Rows().block(tokens, number).tolist()
            ][: len(tokens)]


def common(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


prefixes = st.lists(st.integers(0, 2), max_size=14)


@given(st.lists(st.tuples(st.sampled_from("ab"), prefixes), max_size=12), prefixes)
def test_the_longest_known_beginning_is_restored(stored, asked):
    cache = PrefixCache(1 << 20)
    for owner, tokens in stored:
        cache.store(owner, tokens, Rows(), tokens)
    for owner in "ab":
        group: list = []
        known = cache.fetch(owner, asked, Rows(), group)
        assert known == max([0, *(common(tokens, asked) for other, tokens in stored if other == owner)])
        assert known == cache.length(owner, asked) and group == rows_of(asked[:known])
    cache.forget("a")
    assert cache.length("a", asked) == 0
    cache.forget("b")
    assert cache.size == 0


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["store", "fetch", "forget"]), st.sampled_from("ab"), prefixes), max_size=30),
       st.integers(0, 6))
def test_the_size_is_kept(steps, blocks):
    cache = PrefixCache(blocks * BLOCK)
    for step, owner, tokens in steps:
        if step == "forget":
            cache.forget(owner)
        elif step == "store":
            cache.store(owner, tokens, Rows(), tokens)
        else:
            group: list = []
            known = cache.fetch(owner, tokens, Rows(), group)
            assert group == rows_of(tokens[:known])
        assert 0 <= cache.size <= cache.limit and cache.size % BLOCK == 0
    for owner in "ab":
        cache.forget(owner)
    assert cache.size == 0


def test_the_least_recently_used_leaf_goes_first():
    cache, shared = PrefixCache(4 * BLOCK), [1, 2, 3, 4]
    texts = {name: [*shared, *[number] * 4] for number, name in enumerate("xyz")}
    for tokens in texts.values():
        cache.store(None, tokens, Rows(), tokens)
    cache.fetch(None, texts["x"], Rows(), [])
    other = [9] * 4
    cache.store(None, other, Rows(), other)
    assert [cache.length(None, tokens) for tokens in (*texts.values(), other)] == [8, 4, 8, 4]
    cache.store(None, [8] * 8, Rows(), [8] * 8)  # two blocks: those of z and x, but not the one they shared
    assert [cache.length(None, tokens) for tokens in (*texts.values(), other, [8] * 8)] == [4, 4, 4, 4, 8]


def test_nothing_is_kept_where_there_is_no_room():
    cache = PrefixCache(0)
    cache.store(None, [1, 2, 3], Rows(), [1, 2, 3])
    assert cache.size == 0 and cache.length(None, [1, 2, 3]) == 0


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama-one-key", "qwen3"])
def model(request):
    source = tiny.VARIANTS[request.param]
    return build_model(tiny.config(source), tiny.tensors(source))


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("known", [1, 15, 16, 17, 30])
def test_a_restored_prefix_is_the_one_that_was_read(model, kernels, known):
    if not kernels:
        with ops.portable_operations():
            return check_reader(model, known, lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4,
                                                                                            atol=1e-4))
    check_reader(model, known, np.testing.assert_array_equal)


def check_reader(model, known, check):
    """Read whole, in pieces, restored, joined: the same logits."""
    reader, text = reader_of(model), tiny.tokens(34).tolist()
    prefix, prompt = text[:30], text[30:]
    whole = reader.open(30, [6])
    expected, = reader.logits([Turn(whole, prefix, [(0, prompt)])])

    pieces, cache = reader.open(30, [6]), PrefixCache(1 << 24)
    for start in range(0, 30, 7):
        reader.logits([Turn(pieces, prefix[start : start + 7], ())])
        cache.store(None, prefix[: start + 7], reader, pieces)
    check(reader.logits([Turn(pieces, (), [(0, prompt)])])[0], expected)

    other = [*prefix[:known], *[5] * 10][:30]  # begins alike
    restored = reader.open(len(other), [6])
    assert cache.fetch(None, other, reader, restored) == common(other, prefix)
    rest = other[common(other, prefix) :]
    alone = reader.open(len(other), [6])
    check(reader.logits([Turn(restored, rest, [(0, prompt)])]), reader.logits([Turn(alone, other, [(0, prompt)])]))

    joined = reader.join(whole, [6, 6])
    for got in reader.logits([Turn(joined, (), [(0, prompt), (1, prompt)])]):
        check(got, expected)
    every, group = reader.every_row(reader.open(34, []), text), reader.open(34, [])
    check(np.concatenate([reader.every_row(group, text[start : start + 5]) for start in range(0, 34, 5)]), every)
    for at in (0, 29, 33):
        alone, = reader.logits([Turn(reader.open(0, [at + 1]), (), [(0, text[: at + 1])])])
        np.testing.assert_allclose(every[at], alone, rtol=1e-4, atol=1e-4)
