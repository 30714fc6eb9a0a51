from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.inference.smoothed_labels import before_smoothing
from jittor_lora.inference.span_search import SpanGroup, best_spans
from jittor_lora.inference.token_tree import Node
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    source = tiny.VARIANTS[request.param]
    return build_model(tiny.config(source), tiny.tensors(source))


def log_probabilities(model, tokens):
    """(N, V): of the next token after each."""
    with jt.no_grad():
        hidden = model.hidden(np.asarray(tokens, np.int32), np.arange(len(tokens), dtype=np.int32),
                              Layout.plain(len(tokens)))
        logits = model.logits(hidden).numpy().astype(np.float64)
    return logits - np.logaddexp.reduce(logits, 1, keepdims=True)


def brute_force(model, prompt, spans, ends, smoothing=0.0):
    """The score of every span: the definition."""
    scores = {}
    for span, tokens in spans.items():
        logs = log_probabilities(model, [*prompt, *tokens])
        at = len(prompt) - 1
        size = logs.shape[1]
        scores[span] = sum(before_smoothing(logs[at + i, token], smoothing, size) for i, token in enumerate(tokens))
        scores[span] += before_smoothing(np.logaddexp.reduce(logs[at + len(tokens), list(ends)]), smoothing, size,
                                         len(ends))
    return scores


def tree_of(spans):
    root = Node()
    for span, tokens in spans.items():
        root.add(tokens, span)
    return root


def some_spans(seed, words=12, longest=6):
    text = tiny.tokens(words, seed, vocab_size=9).tolist()  # few tokens: many spans begin alike
    spans, seen = {}, set()
    for start in range(words):
        for end in range(start + 1, min(words, start + longest) + 1):
            if tuple(text[start:end]) not in seen:
                seen.add(tuple(text[start:end]))
                spans[start, end] = text[start:end]
    return spans


def check(model, rows, count=1, share=0.0, smoothing=0.0):
    groups, expected, without, lengths = [], [], [], []
    for number, prompts in enumerate([(1, 4, 2), (3,), (2, 2)]):
        prefix = tiny.tokens(5 * (number % 2), 10 + number).tolist()
        prompts = [tiny.tokens(length, 20 + 7 * number + i).tolist() for i, length in enumerate(prompts)]
        spans = some_spans(30 + number)
        groups.append(SpanGroup(prefix, prompts, tree_of(spans)))
        expected += [brute_force(model, [*prefix, *prompt], spans, (3, 7), smoothing) for prompt in prompts]
        without += [brute_force(model, [*prefix, *prompt], {(): []}, (3, 7), smoothing)[()] for prompt in prompts]
    ended = []
    found = best_spans(model, groups, [7, 3], rows, ended.append, count, share, smoothing=smoothing)
    assert sorted(ended) == list(range(6))
    for one, scores, empty in zip(found, expected, without):
        best = sorted(scores, key=scores.get, reverse=True)[:count]
        best = [span for span in best if scores[span] > scores[best[0]] + np.log(share)] if share else best
        lengths.append(len(best))
        assert [span for span, _ in one.spans] == best
        assert [score for _, score in one.spans] == pytest.approx([scores[span] for span in best], abs=1e-4)
        assert one.empty == pytest.approx(empty, abs=1e-4)
    assert len({one.spans[0][0] for one in found}) > 2
    return lengths


@pytest.mark.parametrize("rows", [1, 6, 64])
@pytest.mark.parametrize("count", [1, 5, 1000])
def test_the_best_of_all_spans(model, rows, count):
    check(model, rows, count)


@pytest.mark.parametrize("share", [1e-3, 0.05, 0.9])
def test_only_spans_about_as_probable_as_the_best(model, share):
    some, every = check(model, 6, 1000, share), check(model, 6, 1000)
    assert min(some) >= 1 and sum(some) < sum(every)
    assert check(model, 6, 3, share) == [min(count, 3) for count in some]


@pytest.mark.parametrize("smoothing", [0.05, 0.3])
@pytest.mark.parametrize("count, share", [(1, 0.0), (5, 0.0), (1000, 0.05)])
def test_the_best_of_all_spans_of_a_model_that_has_learnt_smoothed_labels(model, count, share, smoothing):
    check(model, 6, count, share, smoothing)


def test_the_best_of_all_spans_on_any_device(model):
    with ops.portable_operations():
        check(model, 8)


def test_nodes_that_cannot_win_are_not_read(model):
    spans, rows = some_spans(31), []
    model.watch = lambda x: rows.append(x.shape[0])  # called for each block
    try:
        with ops.portable_operations():
            best_spans(model, [SpanGroup([1, 2], [[3]], tree_of(spans))], [7], batch_size=1)
    finally:
        model.watch = None
    nodes = len({tuple(tokens[:n]) for tokens in spans.values() for n in range(1, len(tokens) + 1)})
    assert sum(rows) / model.config.layers < nodes / 2


def test_no_span_and_no_room(model):
    found = best_spans(model, [SpanGroup([1], [[2], [3]], Node())], [7])
    assert [one.spans for one in found] == [[], []]
    assert all(one.empty < 0 for one in found)
    with pytest.raises(UserError, match=r"42 tokens and up to 7 may follow; .* 48"):
        best_spans(model, [SpanGroup([1] * 40, [[2, 3]], tree_of({(0, 7): [1, 2, 3, 4, 5, 6, 7]}))], [7])
    with pytest.raises(UserError, match="prompt is empty"):
        best_spans(model, [SpanGroup([1], [[]], Node())], [7])
