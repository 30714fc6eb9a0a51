"""Decoding against transformers: greedy texts, and the distributions that are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import tiny
from jittor_lora.model.generate import generate
from jittor_lora.model.load import build_model
from jittor_lora.model.sampling import Sampler, Sampling, probabilities
from parity import reference

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request):
    source = {**tiny.VARIANTS[request.param], "tie_word_embeddings": False}
    tensors = tiny.tensors(source)
    return build_model(tiny.config(source), tensors), reference.network(source, tensors)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_texts_are_those_of_transformers(models, penalty):
    ours, theirs = models
    lengths = np.random.RandomState(0).randint(2, 24, 20)
    for seed, length in enumerate(lengths):
        prompt = tiny.tokens(length, seed)
        tokens = torch.from_numpy(prompt[None].astype(np.int64))
        expected = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False,
                                   repetition_penalty=penalty, eos_token_id=None, pad_token_id=0)
        found = generate(ours, prompt[: length // 2].tolist(), [prompt[length // 2 :].tolist()], 20,
                         Sampling(repetition_penalty=penalty))
        assert found[0] == expected[0, length:].tolist()


@pytest.mark.parametrize("settings", [
    Sampling(0.7), Sampling(1.0, top_k=5), Sampling(1.3, top_p=0.8), Sampling(0.9, top_k=20, top_p=0.5),
    Sampling(1.0, top_k=1), Sampling(2.0, top_k=200), Sampling(1.0, top_p=0.01), Sampling(1.0, top_p=0.999),
])
def test_distributions_are_those_of_transformers(settings):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    for seed in range(20):
        logits = (np.random.RandomState(seed).standard_normal(100) * 4).astype(np.float32)
        expected = torch.softmax(warpers(None, torch.from_numpy(logits[None].copy())), -1)[0].numpy()
        found = probabilities(logits, settings)
        np.testing.assert_array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_repetition_penalty_is_that_of_transformers():
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    for seed in range(50):
        draw = np.random.RandomState(seed)
        logits, seen = draw.standard_normal(10).astype(np.float32), draw.randint(0, 10, 6)
        expected = processor(torch.from_numpy(seen[None]), torch.from_numpy(logits[None].copy()))[0]
        assert Sampler(Sampling(repetition_penalty=1.7)).choose(logits, seen.tolist()) == int(expected.argmax())
