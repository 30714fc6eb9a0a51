"""Several adapters that answer together: the mean of their probabilities, token by token."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.inference.beam import search_groups
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.ensemble_reader import mean_of
from jittor_lora.inference.generate import generate_groups
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import ensemble_of, reader_of
from jittor_lora.inference.span_search import SpanGroup, best_spans
from jittor_lora.inference.token_tree import Node
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt
from needs import needs_kernels

LOW_RANKS = ("one", "two", "three")  # one base, so one call reads all; "dora" has another one
TOGETHER = [LOW_RANKS, ("one", "dora"), (None, "two")]
PREFIX, BRANCHES = tiny.tokens(6, 1).tolist(), [tiny.tokens(3, 2).tolist(), tiny.tokens(1, 3).tolist()]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    source = tiny.VARIANTS[request.param]
    model = build_model(tiny.config(source), tiny.tensors(source))
    for number, name in enumerate((*LOW_RANKS, "dora")):
        adapter = adapters_of(model).add(
            LoraConfig(r=2 + number, target_modules=DEFAULT_TARGETS[request.param], use_dora=name == "dora"), name)
        draw = np.random.RandomState(number)
        adapter.load({key: (p.numpy() + 0.4 * draw.standard_normal(p.shape)).astype(np.float32)
                      for key, p in adapter.parameters().items()})
    return model


@pytest.fixture(params=[pytest.param(True, marks=needs_kernels), False], ids=["kernels", "stock operators"])
def operators(request):
    with ops.portable_operations(*(("norms",) if request.param else ())):
        yield


def definition(model, names, tokens):
    """(N, V): the logarithm of the mean of the adapters' probabilities of the next token after each."""
    logs = []
    for name in names:
        with adapters_of(model).only(*(() if name is None else (name,))), jt.no_grad():
            hidden = model.hidden(np.asarray(tokens, np.int32), np.arange(len(tokens), dtype=np.int32),
                                  Layout.plain(len(tokens)))
            logits = model.logits(hidden).numpy().astype(np.float64)
        logs.append(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
    return np.logaddexp.reduce(logs) - np.log(len(names))


@pytest.mark.parametrize("names", TOGETHER)
def test_logits_are_the_mean_of_the_probabilities(model, names, operators):
    reader = ensemble_of(model, names)
    group = reader.open(len(PREFIX), [8, 8])
    found = reader.logits([Turn(group, PREFIX, list(enumerate(BRANCHES)))])
    expected = [definition(model, names, [*PREFIX, *branch])[-1] for branch in BRANCHES]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    alone = definition(model, names[:1], [*PREFIX, *BRANCHES[0]])[-1]
    assert np.abs(found[0] - alone).max() > 0.1  # the others matter
    # A branch that is cut, one that continues another, and branches of a copy of the prefix.
    reader.rewind(group, 0, 1)
    reader.copy(group, 0, 1)
    found = reader.logits([Turn(group, (), [(1, [5]), (0, [9, 4])])])
    start = [*PREFIX, BRANCHES[0][0]]
    expected = [definition(model, names, [*start, *more])[-1] for more in ([5], [9, 4])]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    joined, fork = reader.join(group, [3]), reader.fork(group, 4, [3])
    found = reader.logits([Turn(joined, (), [(0, [8])]), Turn(fork, (), [(0, [8])])])
    expected = [definition(model, names, [*PREFIX[:count], 8])[-1] for count in (6, 4)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert reader.likeliest([Turn(joined, (), [(0, [7])])]) == definition(model, names, [*PREFIX, 8, 7])[-1].argmax()


@pytest.mark.parametrize("names", TOGETHER)
def test_a_stored_prefix_is_restored(model, names, operators):
    reader = ensemble_of(model, names)
    group = reader.open(len(PREFIX), [])
    np.testing.assert_allclose(reader.every_row(group, PREFIX), definition(model, names, PREFIX), atol=1e-4)
    blocks = [reader.block(group, number) for number in range(-(-len(PREFIX) // reader.block_rows))]
    restored = reader.open(len(PREFIX), [2])
    reader.restore(restored, blocks, len(PREFIX))
    found = reader.logits([Turn(restored, (), [(0, [3])])])
    np.testing.assert_allclose(found, definition(model, names, [*PREFIX, 3])[-1:], atol=1e-4)
    assert reader.row_bytes == len(names) * reader_of(model).row_bytes


@pytest.mark.parametrize("names", TOGETHER)
def test_texts_of_all_searches(model, names, operators):
    reader = ensemble_of(model, names)
    greedy = generate_groups(model, [(PREFIX, BRANCHES)], 5, readers=[reader])
    for branch, new in zip(BRANCHES, greedy):
        logs = definition(model, names, [*PREFIX, *branch, *new])[-6:-1]
        np.testing.assert_allclose(logs[range(5), new], logs.max(1), atol=1e-4)
    for branch, several in zip(BRANCHES, search_groups(model, [(PREFIX, BRANCHES)], 4, Beams(3, 0.0, True), [7, 3],
                                                       reader=reader)):
        for text in several:
            logs = definition(model, names, [*PREFIX, *branch, *text.tokens])[-1 - len(text.tokens) : -1]
            assert text.score == pytest.approx(sum(logs[range(len(text.tokens)), text.tokens]), abs=1e-3)
    spans = {(0, 1): [4], (0, 2): [4, 6], (1, 3): [6, 2], (2, 3): [2]}
    tree = Node()
    for span, tokens in spans.items():
        tree.add(tokens, span)
    for branch, found in zip(BRANCHES, best_spans(model, [SpanGroup(PREFIX, BRANCHES, tree)], [7, 3], count=9,
                                                  reader=reader)):
        scores = {}
        for span, tokens in spans.items():
            logs = definition(model, names, [*PREFIX, *branch, *tokens])[-1 - len(tokens) :]
            scores[span] = logs[range(len(tokens)), tokens].sum() + np.logaddexp.reduce(logs[-1, [7, 3]])
        assert [span for span, _ in found.spans] == sorted(scores, key=scores.get, reverse=True)
        assert dict(found.spans) == pytest.approx(scores, abs=1e-3)


def test_one_adapter_several_times_is_that_adapter(model):
    with adapters_of(model).only("two"):
        alone = generate_groups(model, [(PREFIX, BRANCHES)], 6)
    assert generate_groups(model, [(PREFIX, BRANCHES)], 6, readers=[ensemble_of(model, ("two", "two"))]) == alone
    reader = ensemble_of(model, ("two", "two", "one"))  # which counts twice
    found = reader.logits([Turn(reader.open(0, [9]), (), [(0, PREFIX)])])
    np.testing.assert_allclose(found, definition(model, ("two", "two", "one"), PREFIX)[-1:], atol=1e-4)


def test_an_unknown_adapter_is_refused(model):
    with pytest.raises(UserError, match="four"):
        ensemble_of(model, ("one", "four"))


def test_far_apart_probabilities_have_a_finite_mean():
    logits = np.array([[[0.0, -1e4, 5e3]], [[3e4, 0.0, -3e4]]], np.float32)
    found = mean_of(logits)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_allclose(found, [[-np.log(2), -10000 - np.log(2) - 5000, -np.log(2)]], rtol=1e-6)
    one = np.random.RandomState(0).standard_normal((1, 4, 9)).astype(np.float32)
    np.testing.assert_allclose(np.exp(mean_of(one)).sum(1), 1, rtol=1e-6)
