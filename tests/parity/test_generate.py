"""Decoding against transformers: greedy texts, and the distributions that are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import tiny
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from jittor_lora.formats.bases import load_base, resolve_base
from jittor_lora.inference.beam import search_groups
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.generate import generate, generate_groups
from jittor_lora.inference.sampling import Sampler, Sampling, probabilities
from jittor_lora.model.load import build_model
from parity import reference

pytestmark = pytest.mark.parity


def both(variant):
    """Ours and theirs; with a head of its own, as tied ones repeat a token."""
    source = {**tiny.VARIANTS[variant], "tie_word_embeddings": False}
    tensors = tiny.tensors(source)
    return build_model(tiny.config(source), tensors), reference.network(source, tensors)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request):
    return both(request.param)


@pytest.mark.parametrize("variant, penalty, count", [
    *((variant, penalty, 20) for variant in ("gpt2", "llama") for penalty in (1.0, 1.4)),
    *((variant, 1.0, 8) for variant in ("llama-biased", "llama3", "mistral", "qwen2", "qwen3", "gpt2-scores-by-layer",
                                        "gpt2-scores-unscaled"))])
def test_greedy_texts_are_those_of_transformers(variant, penalty, count):
    ours, theirs = both(variant)
    lengths = np.random.RandomState(0).randint(2, 24, count)
    for seed, length in enumerate(lengths):
        prompt = tiny.tokens(length, seed)
        tokens = torch.from_numpy(prompt[None].astype(np.int64))
        expected = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False,
                                   repetition_penalty=penalty, eos_token_id=None, pad_token_id=0)
        found = generate(ours, prompt[: length // 2].tolist(), [prompt[length // 2 :].tolist()], 20,
                         Sampling(repetition_penalty=penalty))
        assert found[0] == expected[0, length:].tolist()


PROMPTS = [tiny.tokens(length, seed) for seed, length in enumerate(np.random.RandomState(1).randint(2, 24, 50))]
ENDS = [3, 7, 11, 15]


def continued(theirs, prompt, **settings):
    """Their new tokens, of each text that they return, up to the one that ends it."""
    tokens = torch.from_numpy(prompt[None].astype(np.int64))
    found = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False,
                            eos_token_id=ENDS, pad_token_id=0, **settings)[:, len(prompt):].tolist()
    ends = [next((i + 1 for i, token in enumerate(text) if token in ENDS), 20) for text in found]
    return [text[:end] for text, end in zip(found, ends)]


@pytest.mark.parametrize("settings, constraints", [
    ({"num_beams": 2}, {}),
    ({"num_beams": 3, "length_penalty": 0.0, "early_stopping": True}, {}),
    ({"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"}, {}),
    ({"num_beams": 5, "length_penalty": -1.0}, {"repetition_penalty": 1.3}),
    ({"num_beams": 10, "length_penalty": 0.8}, {"no_repeat_ngram": 4}),
    ({"num_beams": 6, "length_penalty": 0.8, "early_stopping": True}, {"no_repeat_ngram": 2, "min_new_tokens": 9}),
])
def test_beams_are_those_of_transformers(models, settings, constraints):
    """All of them, not the best alone."""
    ours, theirs = models
    names = {"no_repeat_ngram": "no_repeat_ngram_size"}
    beams = Beams(settings["num_beams"], settings.get("length_penalty", 1.0), settings.get("early_stopping", False))
    found = search_groups(ours, [(p[: len(p) // 2].tolist(), [p[len(p) // 2 :].tolist()]) for p in PROMPTS], 20, beams,
                          ENDS, Sampling(**constraints))
    for prompt, texts in zip(PROMPTS, found):
        expected = continued(theirs, prompt, num_return_sequences=beams.count, **settings,
                             **{names.get(name, name): value for name, value in constraints.items()})
        assert [text.tokens for text in texts] == expected
    assert 1 < len({len(text.tokens) for texts in found for text in texts})


@pytest.mark.parametrize("constraints", [{"no_repeat_ngram": 1}, {"no_repeat_ngram": 3}, {"min_new_tokens": 12},
                                         {"repetition_penalty": 1.5, "no_repeat_ngram": 2, "min_new_tokens": 20}])
def test_constrained_greedy_texts_are_those_of_transformers(models, constraints):
    ours, theirs = models
    names = {"no_repeat_ngram": "no_repeat_ngram_size"}
    for prompt in PROMPTS:
        expected = continued(theirs, prompt, **{names.get(name, name): value for name, value in constraints.items()})
        found = generate(ours, [], [prompt.tolist()], 20, Sampling(**constraints),
                         lambda _, new: new[-1] in ENDS, ends=ENDS)
        assert found == expected


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
    if settings.min_p:
        warpers.append(MinPLogitsWarper(settings.min_p))
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


def test_texts_of_smollm2_are_those_of_transformers():
    """Twenty prompts, greedy and with four beams, in float32."""
    try:
        resolved = resolve_base("smollm2-135m")
    except UserError as error:
        pytest.skip(f"needs SmolLM2, which cannot be fetched here: {error}")
    checkpoint, tokenizer = load_base(resolved)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        resolved.path.parent, gguf_file=resolved.path.name, dtype=torch.float32).eval()
    ours, end = build_model(checkpoint.config, checkpoint.tensors), tokenizer.eos_id
    paragraphs = load_data("sample-dev").paragraphs
    prompts = [tokenizer.encode(paragraphs[40 * i].context)[: 8 + 2 * i] for i in range(20)]
    groups = [(prompt[: len(prompt) // 2], [prompt[len(prompt) // 2 :]]) for prompt in prompts]
    greedy = generate_groups(ours, groups, 12, finished=lambda _, new: new[-1] == end)
    beams = search_groups(ours, groups, 12, Beams(4, 0.8), [end], Sampling(no_repeat_ngram=4))
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    for prompt, likeliest, found in zip(prompts, greedy, beams):
        tokens = torch.tensor([prompt])
        for ours_new, more in ((likeliest, {}), (found[0].tokens, {"num_beams": 4, "length_penalty": 0.8,
                                                                  "no_repeat_ngram_size": 4})):
            new = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **settings, **more)[0, len(prompt):]
            assert new[: len(ours_new)].tolist() == ours_new
            assert (new[len(ours_new) :] == end).all()
