from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.inference.generate import generate, generate_groups
from jittor_lora.inference.sampling import Sampler, Sampling
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    source = {**tiny.VARIANTS[request.param], "tie_word_embeddings": False}  # tied ones repeat a token for ever
    return build_model(tiny.config(source), tiny.tensors(source))


def ids(count, seed=0):
    return tiny.tokens(count, seed).tolist()


def last_logits(model, tokens):
    with jt.no_grad():
        hidden = model.hidden(np.asarray(tokens, np.int32), np.arange(len(tokens), dtype=np.int32),
                              Layout.plain(len(tokens)), [len(tokens) - 1])
        return model.logits(hidden).numpy()[0]


def without_cache(model, prompt, max_new_tokens, sampling, number=0):
    """The definition: the whole text is read again for each token."""
    sampler, new = Sampler(sampling, number), []
    while len(new) < max_new_tokens and len(prompt) + len(new) <= model.config.max_positions:
        new.append(sampler.choose(last_logits(model, prompt + new), prompt + new))
    return new


@pytest.mark.parametrize("sampling", [
    Sampling(),
    Sampling(repetition_penalty=1.7),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=3),
    Sampling(temperature=1.3, repetition_penalty=1.2, seed=4),
])
def test_cached_decoding_is_reading_everything_again(model, sampling):
    prompt = ids(7)
    expected = without_cache(model, prompt, 15, sampling)
    assert generate(model, prompt[:4], [prompt[4:]], 15, sampling) == [expected]
    assert generate(model, [], [prompt], 15, sampling) == [expected]
    assert len(set(expected)) > 1


def test_branches_are_as_if_alone(model):
    prefix, branches = ids(6, 1), [ids(5, 2), ids(1, 3), ids(9, 4), ids(1, 3)]
    together = generate(model, prefix, branches, 10)
    assert together == [without_cache(model, prefix + branch, 10, Sampling()) for branch in branches]
    assert together[0] != together[2]
    assert generate(model, [], branches, 10) == [without_cache(model, branch, 10, Sampling()) for branch in branches]


def test_branches_end_one_by_one(model):
    """A finished branch takes no further step, and the others do not feel it."""
    prefix, branches = ids(4, 1), [ids(3, 2), ids(2, 5), ids(4, 4)]
    full = generate(model, prefix, branches, 9)
    ends = [2, 7, 4]
    calls = []
    found = generate(model, prefix, branches, 9, finished=lambda branch, new: len(new) == ends[branch],
                     on_token=lambda branch, token: calls.append((branch, token)))
    assert found == [tokens[:end] for tokens, end in zip(full, ends)]
    for branch, tokens in enumerate(found):
        assert [token for b, token in calls if b == branch] == tokens


def test_finished_sees_the_token_and_ends_with_it(model):
    prompt = ids(5)
    full = generate(model, [], [prompt], 12)[0]
    stop = full[5]
    found = generate(model, [], [prompt], 12, finished=lambda branch, new: new[-1] == stop)[0]
    assert found == full[: full.index(stop) + 1]


def test_the_models_positions_end_the_text(model):
    """A text of all positions can still be given one more token, which is never read."""
    for length in (45, 47, 48):
        prompt = ids(length)
        assert len(generate(model, prompt[:20], [prompt[20:]], 100)[0]) == 48 - length + 1


def test_a_limit_far_beyond_the_models_positions_costs_nothing(model):
    prompt = ids(40)
    assert generate(model, [], [prompt], 10**12) == generate(model, [], [prompt], 9)


def test_a_prompt_that_is_too_long(model):
    with pytest.raises(UserError, match="49 tokens; the model takes at most 48"):
        generate(model, ids(20), [ids(3), ids(29)], 4)


@pytest.mark.parametrize("prefix", [[], [5]])
def test_an_empty_prompt(model, prefix):
    with pytest.raises(UserError, match="empty"):
        generate(model, prefix, [[3], []], 4)


@pytest.mark.parametrize("prefix, branch", [([61], [3]), ([3], [-1])])
def test_a_token_that_the_model_does_not_have(model, prefix, branch):
    with pytest.raises(UserError, match="token id .* out of range"):
        generate(model, prefix, [branch], 4)


def test_nothing_to_do(model):
    assert generate(model, [1, 2], [], 5) == []
    assert generate(model, [1, 2], [[3]], 0) == [[]]


def test_the_network_is_as_before(model):
    before = last_logits(model, ids(6))
    generate(model, ids(3), [ids(2)], 5)
    np.testing.assert_array_equal(last_logits(model, ids(6)), before)


GROUPS = [(ids(6, 1), [ids(5, 2), ids(1, 3), ids(9, 4)]), ([], [ids(7, 5)]), (ids(12, 6), [ids(2, 7)] * 5), ([4], [])]
SAMPLED = Sampling(temperature=1.1, top_k=30, seed=7)


@pytest.mark.parametrize("rows", [1, 2, 4, 64])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_groups_are_as_if_alone(model, rows, sampling):
    """Greedy and sampled, whichever branches advance together; each draws from a stream of its own."""
    found = generate_groups(model, GROUPS, 10, sampling, batch_size=rows)
    prompts = [prefix + branch for prefix, branches in GROUPS for branch in branches]
    assert found == [without_cache(model, prompt, 10, sampling, number) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("portable", [False, True])
def test_the_first_logits_can_be_seen_and_changed(model, rows, portable):
    """Suppressing tokens there is `min_new_tokens=1`, and a text goes on as always."""
    seen, ends = {}, [5, 9, 17, 33]

    def first(branch, logits):
        seen[branch] = logits.copy()
        logits[ends] = -np.inf

    with ops.portable_operations() if portable else nullcontext():
        plain = generate_groups(model, GROUPS, 10)
        ends += [new[0] for new in plain[:2]]
        found = generate_groups(model, GROUPS, 10, batch_size=rows, on_first=first)
        assert found == generate_groups(model, GROUPS, 10, Sampling(min_new_tokens=1), ends=ends)
    assert found[0] != plain[0]
    prompts = [prefix + branch for prefix, branches in GROUPS for branch in branches]
    assert seen.keys() == set(range(len(prompts)))
    for branch, logits in seen.items():
        np.testing.assert_allclose(logits, last_logits(model, prompts[branch]), rtol=1e-4, atol=1e-4)


def test_the_portable_reader_gives_the_same(model):
    with ops.portable_operations():
        expected = generate_groups(model, GROUPS, 10, SAMPLED, batch_size=4)
    assert generate_groups(model, GROUPS, 10, SAMPLED, batch_size=4) == expected


def test_branches_end_and_others_take_their_place(model):
    full = generate_groups(model, GROUPS, 9)
    ends, ended, most, live = [2, 7, 4, 9, 1, 3, 5, 2, 8], [], [0], set()

    def on_token(branch, token):
        live.add(branch)
        most[0] = max(most[0], len(live))

    def on_end(branch):
        live.remove(branch)
        ended.append(branch)

    found = generate_groups(model, GROUPS, 9, finished=lambda branch, new: len(new) == ends[branch], on_token=on_token,
                            on_end=on_end, batch_size=5)
    assert found == [tokens[:end] for tokens, end in zip(full, ends)]
    assert sorted(ended) == list(range(9)) and ended != sorted(ended)
    assert 3 < most[0] <= 5


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_damaged_weights(sampling):
    tensors = tiny.tensors(tiny.GPT2)
    tensors["transformer.h.0.mlp.c_fc.weight"][0, 0] = np.nan
    damaged = build_model(tiny.config(tiny.GPT2), tensors)
    with pytest.raises(UserError, match="not finite: weights of the base or of the adapter are damaged"):
        generate(damaged, [1, 2], [[3]], 4, sampling)
    with ops.portable_operations(), pytest.raises(UserError, match="not finite"):
        generate(damaged, [1, 2], [[3]], 4, sampling)
