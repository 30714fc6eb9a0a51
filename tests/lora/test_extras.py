"""A bias on B, and other rows for some tokens: decoding with kernels, with stock operators, and merged."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of, inject
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt

TOKENS = tiny.tokens(12)
SOURCES = {name: tiny.VARIANTS[name] for name in ("gpt2", "llama", "llama-untied")}


def logits(model):
    with jt.no_grad():
        hidden = model.hidden(TOKENS, np.arange(len(TOKENS), dtype=np.int32), Layout.plain(len(TOKENS)))
        return model.logits(hidden).numpy()


def adapted(name):
    """A network with biases on B and two rows replaced."""
    source = SOURCES[name]
    model = build_model(tiny.config(source), tiny.tensors(source))
    embedding = "transformer.wte" if name == "gpt2" else "model.embed_tokens"
    rows = np.array([int(TOKENS[0]), 9]), tiny.adapter_arrays({"x": (2, 24)})["x"]
    modules = (embedding, "lm_head") if source.get("tie_word_embeddings", True) else (embedding,)
    config = LoraConfig(r=2, target_modules=DEFAULT_TARGETS[source["model_type"]], lora_bias=True)
    adapter = inject(model, config, token_rows=dict.fromkeys(modules, rows))
    adapter.load(tiny.adapter_arrays({key: tuple(p.shape) for key, p in adapter.parameters().items()}))
    return model, adapter, rows


@pytest.mark.parametrize("name", SOURCES)
def test_kernels_and_stock_operators(name):
    model, _, _ = adapted(name)
    before = logits(model)
    with ops.portable_operations():
        np.testing.assert_allclose(logits(model), before, atol=2e-5)
    with adapters_of(model).off():
        base = build_model(tiny.config(SOURCES[name]), tiny.tensors(SOURCES[name]))
        np.testing.assert_array_equal(logits(model), logits(base))
    adapters_of(model).merge()
    np.testing.assert_allclose(logits(model), before, atol=5e-5)
    adapters_of(model).unmerge()
    np.testing.assert_array_equal(logits(model), before)


@pytest.mark.parametrize("name", SOURCES)
def test_decoding(name):
    """The decoder of the kernels has the biases, which Llama's layers otherwise lack, and the rows."""
    model, _, _ = adapted(name)
    expected = logits(model)
    assert_reads(model, expected)
    with ops.portable_operations():
        assert_reads(model, expected)


def assert_reads(model, expected):
    """The first six tokens at once, and the others one by one."""
    reader = reader_of(model)
    group = reader.open(0, [len(TOKENS)])
    found = [reader.logits([Turn(group, [], [(0, tokens)])])[0]
             for tokens in ([int(t) for t in TOKENS[:6]], *([int(t)] for t in TOKENS[6:]))]
    np.testing.assert_allclose(np.stack(found), expected[5:], atol=5e-5)


def test_rows_and_an_update_of_one_module():
    model, _, rows = adapted("gpt2")
    with pytest.raises(UserError, match="transformer.wte: expected rows of single tokens, or an update"):
        inject(model, LoraConfig(r=2, target_modules=("wte",)), name="other", token_rows={"transformer.wte": rows})


def test_two_adapters_with_rows_are_not_active_together():
    model, _, rows = adapted("gpt2")
    inject(model, LoraConfig(r=2, target_modules=("c_attn",)), name="other", token_rows={"transformer.wte": rows})
    with pytest.raises(UserError, match="transformer.wte: only one adapter"):
        adapters_of(model).activate("default", "other")
