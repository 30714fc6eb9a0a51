"""Decoding on the CUDA backend against the operators, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from cuda_emulator import DESCENDING, SHUFFLED, launches, thread_order
from decoding import ALIGNED, ODD_HEADS, VARIANTS, adapted, check_close, ids, network, operators, read
from inference import test_beam, test_generate, test_prefix_cache, test_span_search
from jittor_lora.errors import UserError
from jittor_lora.inference.fused_reader import FusedReader
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import reader_of, readers_of
from jittor_lora.inference.sampling import Sampling
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import adapters_of
from jittor_lora.model.load import build_model

pytestmark = pytest.mark.usefixtures("on_the_emulator")
LONG = {**tiny.GPT2, "n_positions": 300}


@pytest.mark.parametrize("variant", ["gpt2", "gpt2-erf-untied", "llama-biased", "qwen3", "odd-heads"])
def test_logits_are_those_of_the_operators(variant):
    model = network(VARIANTS[variant])
    assert isinstance(reader_of(model), FusedReader)
    check_close(read(FusedReader(model), 7, [3, 1, 12]), operators(model, 7, [3, 1, 12]), 1e-5)


@pytest.mark.parametrize("shape", [(150, [100, 3]), (0, [200])])
def test_several_chunks_of_keys(shape):
    model = network(LONG)
    check_close(read(FusedReader(model), *shape, steps=1), operators(model, *shape, steps=1), 1e-5)


@pytest.mark.parametrize("variant", ["gpt2", "odd-heads", "aligned"])
def test_bf16(variant):
    exact = operators(network(VARIANTS[variant]), 5, [4, 2])
    found = read(FusedReader(network(VARIANTS[variant], "bf16")), 5, [4, 2])
    check_close(found, exact, 2e-2)
    assert any(np.abs(ours - theirs).max() > 1e-4 for ours, theirs in zip(found, exact))


@pytest.mark.parametrize("r", [1, 33])
def test_adapters_of_any_rank(r):
    model, _ = adapted(VARIANTS["qwen3"], r=r)
    check_close(read(FusedReader(model), 3, [3, 4], 1), operators(model, 3, [3, 4], 1), 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_adapters_and_none_in_one_call(precision):
    """The same bits as each by itself, in any order of threads."""
    model = network(ODD_HEADS, precision)
    for name, r in (("one", 3), ("other", 9)):
        adapter = adapters_of(model).add(LoraConfig(r=r, target_modules="all-linear"), name)
        adapter.load(tiny.adapter_arrays({key: tuple(p.shape) for key, p in adapter.parameters().items()}, seed=r))
    readers = readers_of(model, ["one", None, "other"])
    assert len({reader.base for reader in readers}) == 1

    def turn(reader):
        return Turn(reader.open(5, [6, 2]), ids(5, 1), [(0, ids(6, 2)), (1, ids(2, 3))])

    alone = [reader.logits([turn(reader)]) for reader in readers]
    assert min(np.abs(alone[i] - alone[i - 1]).max() for i in range(3)) > 0.1
    for order in (DESCENDING, SHUFFLED):
        with thread_order(order):
            together = readers[1].logits([turn(reader) for reader in readers])
            np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("source, precision, lengths", [(LONG, "fp32", [1, 4, 1, 2, 1, 1, 7, 1, 1, 3]),
                                                        (ALIGNED, "bf16", [1, 2, 1, 5])])
def test_company_does_not_change_a_bit(source, precision, lengths):
    """Alone, among branches of one prefix and of another, at other lengths, and with steps of several tokens."""
    reader, prefix = FusedReader(network(source, precision)), ids(70)
    other, group = reader.open(3, [9, 9]), reader.open(70, [9] * len(lengths))
    branches = [(b, ids(length, b)) for b, length in enumerate(lengths)]
    together = reader.logits([Turn(other, ids(3), [(0, ids(2))]), Turn(group, prefix, branches)])[1:]
    later = reader.logits([Turn(group, (), [(b, ids(2, 50 + b)) for b in range(len(lengths))]),
                           Turn(other, (), [(1, ids(3))])])
    for b, length in enumerate(lengths):
        alone = reader.open(70, [9])
        expected = reader.logits([Turn(alone, prefix, [(0, ids(length, b))])])
        np.testing.assert_array_equal(together[b], expected[0])
        np.testing.assert_array_equal(later[b], reader.logits([Turn(alone, (), [(0, ids(2, 50 + b))])])[0])


def test_cuts_of_a_prompt_do_not_change_a_bit():
    """At once, so that a block of attention has all keys of a row, or in pieces, so that it has some of them."""
    source = {**tiny.GPT2, "n_embd": 32, "n_head": 32, "n_positions": 264}
    reader, prompt = FusedReader(network(source)), ids(256)
    whole, pieces = reader.open(256, [1]), reader.open(256, [1])
    expected = reader.logits([Turn(whole, prompt, [(0, ids(1))])])
    for start in range(0, 256, 100):
        reader.logits([Turn(pieces, prompt[start : start + 100], ())])
    np.testing.assert_array_equal(reader.logits([Turn(pieces, (), [(0, ids(1))])]), expected)


@pytest.mark.parametrize("precision, rows", [("fp32", 30), ("bf16", 200)])
def test_tiles_of_many_rows_and_outputs(precision, rows):
    """Whole tiles of a product, with sums over several parts of the inputs, against one row at a time."""
    source = {**tiny.GPT2, "n_embd": 256, "n_head": 4, "n_inner": 64, "n_layer": 1, "vocab_size": 1000,
              "n_positions": 200}
    reader, tokens = FusedReader(network(source, precision)), tiny.tokens(rows, vocab_size=1000).tolist()
    together = reader.every_row(reader.open(rows, []), tokens)
    for few in (1, 3, 20):
        np.testing.assert_array_equal(reader.every_row(reader.open(few, []), tokens[:few]), together[:few])


def test_the_likeliest_is_the_first_with_the_largest_logit():
    tensors = tiny.tensors(tiny.GPT2)
    wte = tensors["transformer.wte.weight"]
    wte[1::2] = wte[::2][: len(wte[1::2])]  # every logit twice
    reader = FusedReader(build_model(tiny.config(tiny.GPT2), tensors))
    turns = [[Turn(reader.open(5, [1] * 70), ids(5), [(b, ids(1, b)) for b in range(70)])] for _ in range(2)]
    expected = reader.logits(turns[0]).argmax(1)
    assert (expected % 2 == 0).all() and len(set(expected)) > 1
    np.testing.assert_array_equal(reader.likeliest(turns[1]), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("ask", ["likeliest", "logits"])
def test_numbers_that_are_not_finite(value, ask):
    tensors = tiny.tensors(tiny.GPT2)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
    reader = FusedReader(build_model(tiny.config(tiny.GPT2), tensors))
    with pytest.raises(UserError, match="not finite"):
        getattr(reader, ask)([Turn(reader.open(0, [4]), (), [(0, ids(4))])])


@pytest.mark.parametrize("source", [tiny.GPT2, ALIGNED])
def test_launches_per_token(source):
    """Also with an adapter."""
    model, _ = adapted(source)
    reader = FusedReader(model)
    group = reader.open(9, [8])
    reader.likeliest([Turn(group, ids(9), [(0, ids(2))])])
    before = launches()
    reader.likeliest([Turn(group, (), [(0, ids(1))])])
    assert launches() - before <= 8 * model.config.layers + 4


# --- works as on other backends: each of these compares with reading everything again ---------------------------------


@pytest.fixture(scope="module")
def model():
    source = {**tiny.LLAMA, "tie_word_embeddings": False}
    return build_model(tiny.config(source), tiny.tensors(source))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.3, repetition_penalty=1.2, seed=4)])
def test_generation(model, sampling):
    test_generate.test_cached_decoding_is_reading_everything_again(model, sampling)


def test_prefix_cache_forks_and_joins(model):
    test_prefix_cache.check_reader(model, 17, np.testing.assert_array_equal)


def test_beam_search(model):
    test_beam.test_one_beam_is_greedy_decoding(model)


def test_span_search_reads_nodes_of_a_tree(model):
    test_span_search.check(model, 6)
