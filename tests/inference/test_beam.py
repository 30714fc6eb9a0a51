from __future__ import annotations

import itertools

import numpy as np
import pytest

import tiny
from inference.test_span_search import log_probabilities
from jittor_lora import ops
from jittor_lora.errors import UserError
from jittor_lora.inference.beam import GREEDY, search_groups
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.generate import generate
from jittor_lora.inference.sampling import Sampling
from jittor_lora.model.load import build_model

ENDS = [3, 7]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    source = {**tiny.VARIANTS[request.param], "tie_word_embeddings": False}
    return build_model(tiny.config(source), tiny.tensors(source))


def search(model, prompt, new, beams, sampling=GREEDY, **more):
    return search_groups(model, [(prompt[:3], [prompt[3:]])], new, beams, ENDS, sampling, **more)[0]


def test_one_beam_is_greedy_decoding(model):
    prompt = tiny.tokens(7).tolist()
    for sampling in (Sampling(), Sampling(no_repeat_ngram=2), Sampling(min_new_tokens=6)):
        expected = generate(model, prompt[:3], [prompt[3:]], 12, sampling, lambda _, new: new[-1] in ENDS, ends=ENDS)[0]
        found = search(model, prompt, 12, Beams(1, early_stopping=True), sampling)
        assert [hypothesis.tokens for hypothesis in found] == [expected]
    assert len(search(model, prompt, 12, Beams(1, early_stopping=True), Sampling(min_new_tokens=6))[0].tokens) >= 7


def test_with_as_many_beams_as_texts_it_finds_the_best_of_all(model):
    """Of all texts of at most two tokens: scored by hand."""
    prompt, vocabulary = tiny.tokens(6, 3).tolist(), 61
    first = log_probabilities(model, prompt)[-1]
    scores = {(end,): first[end] for end in ENDS}
    for token in set(range(vocabulary)) - set(ENDS):
        second = log_probabilities(model, [*prompt, token])[-1]
        scores.update({(token, other): first[token] + second[other] for other in range(vocabulary)})
    for penalty in (0.0, 1.0, 2.0, -1.0):
        ranked = sorted(scores, key=lambda text: -scores[text] / len(text) ** penalty)
        found = search(model, prompt, 2, Beams(vocabulary, penalty, "never"))
        assert [tuple(hypothesis.tokens) for hypothesis in found[:5]] == ranked[:5]
        assert found[0].score == pytest.approx(scores[ranked[0]] / len(ranked[0]) ** penalty, abs=1e-4)


def test_company_changes_nothing(model):
    groups = [(tiny.tokens(4, 1).tolist(), [tiny.tokens(n, 2 + n).tolist() for n in (2, 1, 3)]),
              ([], [tiny.tokens(5, 9).tolist()]), (tiny.tokens(3, 12).tolist(), [tiny.tokens(1, 13).tolist()])]
    beams = Beams(4, 0.7)
    alone = [search_groups(model, [(prefix, [prompt])], 9, beams, ENDS)[0]
             for prefix, prompts in groups for prompt in prompts]
    for rows in (1, 8, 64):
        ended = []
        together = search_groups(model, groups, 9, beams, ENDS, batch_size=rows, on_end=ended.append)
        assert [[h.tokens for h in found] for found in together] == [[h.tokens for h in found] for found in alone]
        assert sorted(ended) == list(range(5))
    with ops.portable_operations():
        portable = search_groups(model, groups, 9, beams, ENDS)
    assert [[h.tokens for h in found] for found in portable] == [[h.tokens for h in found] for found in alone]
    assert all(len(found) == 4 for found in alone) and len({tuple(found[0].tokens) for found in alone}) > 3


def test_constraints_hold(model):
    prompt = tiny.tokens(8, 4).tolist()
    for found in search(model, prompt, 14, Beams(5), Sampling(no_repeat_ngram=2, min_new_tokens=5)):
        text = [*prompt, *found.tokens]
        assert len(found.tokens) > 5
        pairs = list(zip(text, text[1:]))
        new = pairs[len(prompt) - 1:]
        assert all(pair not in pairs[: len(prompt) - 1 + i] for i, pair in enumerate(new))
    loose = search(model, prompt, 14, Beams(5))
    assert any(len(found.tokens) <= 5 for found in loose) or len(set(loose[0].tokens)) < len(loose[0].tokens)


def test_a_text_ends_where_the_model_has_no_position_left(model):
    found = search_groups(model, [([], [tiny.tokens(46).tolist()])], 9, Beams(3), [60])[0]
    assert {len(hypothesis.tokens) for hypothesis in found} <= {1, 2, 3}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 2, "length_penalty": np.inf},
                                   {"count": 2, "early_stopping": "always"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(UserError, match=next(itertools.islice(reversed(list(wrong)), 1))):
        Beams(**wrong)
