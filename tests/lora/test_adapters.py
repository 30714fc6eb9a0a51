"""Several adapters on one base."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import build_stream
from jittor_lora.errors import UserError
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.fused_reader import FusedReader
from jittor_lora.inference.generate import generate_groups
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.inference.portable_reader import PortableReader
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import readers_of
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of, inject
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import Embedding, Linear, leaf_modules
from jittor_lora.system.runtime import jt
from jittor_lora.training.gradients import gradients_of, stream_loss
from needs import HAS_KERNELS, needs_bf16, needs_kernels

# Three that differ in everything: ranks, targets, and what is trained beside A and B.
KINDS = {
    "plain": {"r": 3},
    "dora": {"r": 2, "use_dora": True, "modules_to_save": {
        "gpt2": ("ln_f", "wpe"), "llama": ("model.norm",), "qwen3": ("model.norm", "q_norm", "0.self_attn.k_norm")}},
    "tables": {"r": 4, "use_rslora": True,
               "target_modules": {"gpt2": ("wte", "c_attn"), "llama": ("embed_tokens", "q_proj"),
                                  "qwen3": ("embed_tokens", "q_proj")},
               "modules_to_save": ("lm_head",)},
    "head": {"r": 2, "target_modules": ("lm_head",), "use_dora": True},
}


def network(family="gpt2", precision="fp32"):
    source = tiny.VARIANTS[family]
    return build_model(tiny.config(source), tiny.tensors(source), precision)


def add(model, kind, seed=0):
    family = model.config.family
    chosen = {key: value[family] if isinstance(value, dict) else value for key, value in KINDS[kind].items()}
    adapter = inject(model, LoraConfig(**{"target_modules": DEFAULT_TARGETS[family], **chosen}), name=kind)
    draw = np.random.RandomState(seed + len(kind))
    adapter.load({name: (p.numpy() + 0.2 * draw.standard_normal(p.shape)).astype(np.float32)
                  for name, p in adapter.parameters().items()})
    return adapter


def crowded(family="gpt2"):
    model = network(family)
    for kind in KINDS:
        add(model, kind)
    return model


def alone(kind, family="gpt2"):
    model = network(family)
    if kind is not None:
        add(model, kind)
    return model


def logits(model, tokens=None, layout=None, positions=None):
    tokens = tiny.tokens(12) if tokens is None else tokens
    positions = np.arange(len(tokens), dtype=np.int32) if positions is None else positions
    with jt.no_grad():
        hidden = model.hidden(tokens, positions, layout or Layout.plain(len(tokens)))
        return model.logits(hidden).numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_switching(family):
    model = crowded(family)
    adapters = adapters_of(model)
    assert adapters.active == ("plain",) and list(adapters) == list(KINDS)
    expected = {kind: logits(alone(kind, family)) for kind in (*KINDS, None)}
    for kind in ("dora", "plain", "tables", "dora"):
        adapters.activate(kind)
        np.testing.assert_array_equal(logits(model), expected[kind])
        with adapters.off():
            np.testing.assert_array_equal(logits(model), expected[None])
            with adapters.only("plain"):
                np.testing.assert_array_equal(logits(model), expected["plain"])
        np.testing.assert_array_equal(logits(model), expected[kind])
    adapters.activate()
    np.testing.assert_array_equal(logits(model), expected[None])
    for one, other in (("plain", "dora"), ("dora", "tables"), ("plain", None)):
        assert np.abs(expected[one] - expected[other]).max() > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_deleting_leaves_the_base(family):
    model = crowded(family)
    adapters = adapters_of(model)
    adapters.activate("dora")
    adapters.delete("plain")
    np.testing.assert_array_equal(logits(model), logits(alone("dora", family)))
    adapters.delete("dora")
    assert adapters.active == ()
    np.testing.assert_array_equal(logits(model), logits(alone(None, family)))
    adapters.delete("tables")
    adapters.delete("head")
    kinds = {type(leaf.module) for leaf in leaf_modules(model)}
    assert kinds == {type(leaf.module) for leaf in leaf_modules(network(family))} >= {Linear, Embedding}
    add(model, "plain")
    assert adapters.active == ("plain",)


def test_what_cannot_act_together():
    model = crowded()
    adapters = adapters_of(model)
    with pytest.raises(UserError, match=r"cannot be active together:\n  transformer.wte: .*whole"):
        inject(model, LoraConfig(target_modules=("c_fc",), modules_to_save=("wte", "ln_f")), name="whole")
        adapters.activate("whole", "dora", "tables")
    with pytest.raises(UserError, match="nobody: not found; there is plain, dora, tables, head"):
        adapters.activate("plain", "nobody")
    with pytest.raises(UserError, match="nobody"):
        adapters.delete("nobody")
    assert adapters.active == ("plain",)
    for kind in ("first", "second"):
        inject(model, LoraConfig(target_modules=("c_fc",), bias="lora_only"), name=kind)
    with pytest.raises(UserError, match=r"0.mlp.c_fc: only one adapter can replace its weight or bias, found first"):
        adapters.activate("first", "second")


@pytest.mark.parametrize("name", ["", "a.b"])
def test_names(name):
    with pytest.raises(UserError, match="expected a name without dots"):
        inject(network(), LoraConfig(), name=name)


@pytest.mark.parametrize("names", [("plain", "dora"), ("dora", "plain"), ("plain", "dora", "tables")])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_stack_merged_decoded_and_unmerged(family, names):
    model = crowded(family)
    adapters = adapters_of(model)
    adapters.activate(*names)
    stacked = logits(model)
    assert min(np.abs(stacked - logits(alone(name, family))).max() for name in names) > 0.1
    adapters.merge()
    np.testing.assert_allclose(logits(model), stacked, atol=1e-4)
    with adapters.only(names[0]):  # what is merged is these together
        np.testing.assert_array_equal(logits(model), logits(alone(names[0], family)))
    adapters.unmerge()
    np.testing.assert_array_equal(logits(model), stacked)
    tokens = tiny.tokens(12).tolist()
    with ops.portable_operations():
        expected = PortableReader(model)
        expected = expected.logits([Turn(expected.open(0, [12]), (), [(0, tokens)])])
    np.testing.assert_allclose(expected[0], stacked[-1], atol=1e-4)
    if HAS_KERNELS:
        decoder = FusedReader(model)
        found = decoder.logits([Turn(decoder.open(0, [12]), (), [(0, tokens)])])
        np.testing.assert_allclose(found, expected, atol=1e-4)


# --- an adapter for each group ---------------------------------------------------------------------------------------

GROUPS = tiny.groups(4, seed=2)
OF_GROUP = ("dora", "head", None, "tables")


def of_rows(groups, names):
    """The adapter of each row of the groups' stream."""
    return [name for group, name in zip(groups, names) for _ in range(len(build_stream([group]).tokens))]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_mixed_stream_is_separate_runs(family):
    model, stream = crowded(family), build_stream(GROUPS)
    with adapters_of(model).by_row(of_rows(GROUPS, OF_GROUP)):
        mixed = logits(model, stream.tokens, stream.layout, stream.positions)
        loss = stream_loss(model, stream)  # only the rows with labels in the last block
        with jt.no_grad():
            loss = stream_loss(model, stream).item()
    row, total = 0, 0.0
    for group, name in zip(GROUPS, OF_GROUP):
        part, separate = build_stream([group]), alone(name, family)
        expected = logits(separate, part.tokens, part.layout, part.positions)
        np.testing.assert_allclose(mixed[row : row + len(expected)], expected, atol=2e-5)
        row += len(expected)
        with jt.no_grad():
            total += stream_loss(separate, part).item()
    assert loss == pytest.approx(total, rel=1e-5)
    np.testing.assert_array_equal(logits(model), logits(alone("plain", family)))  # the active one again


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_adapter_gets_the_gradient_of_its_groups(checkpointing):
    names = ("plain", "dora", "plain", "dora")
    model, stream = crowded(), build_stream(GROUPS)
    model.activation_checkpointing = checkpointing
    adapters = adapters_of(model)
    with adapters.by_row(of_rows(GROUPS, names)):
        loss = stream_loss(model, stream)
    parameters = [p for name in ("plain", "dora") for p in adapters[name].parameters().values()]
    found = iter([g.numpy() for g in gradients_of(loss, parameters)])
    for name in ("plain", "dora"):
        separate = alone(name)
        part = build_stream([group for group, other in zip(GROUPS, names) if other == name])
        own = adapters_of(separate)[name].parameters()
        for key, expected in zip(own, gradients_of(stream_loss(separate, part), list(own.values()))):
            expected = expected.numpy()
            np.testing.assert_allclose(next(found), expected, atol=2e-5 * max(1, np.abs(expected).max()), err_msg=key)


def test_every_row_needs_an_adapter():
    model = crowded()
    with pytest.raises(UserError, match="nobody"), adapters_of(model).by_row(["nobody"] * 12):
        pass
    with adapters_of(model).by_row(["dora"] * 11):
        with pytest.raises(ValueError, match="12 rows, and adapters for 11"):
            logits(model)
        with adapters_of(model).off():
            np.testing.assert_array_equal(logits(model), logits(alone(None)))
        np.testing.assert_array_equal(logits(model, tiny.tokens(11)), logits(alone("dora"), tiny.tokens(11)))
    assert model.row_adapters is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
def test_texts_with_an_adapter_for_each_group(family, kernels):
    groups = [(group.prefix, [branch.prompt for branch in group.branches]) for group in GROUPS]
    model = crowded(family)
    with ops.portable_operations(*(() if not kernels else ("norms",))):
        mixed = generate_groups(model, groups, 5, readers=readers_of(model, OF_GROUP))
        separate = [new for group, name in zip(groups, OF_GROUP)
                    for new in generate_groups(alone(name, family), [group], 5)]
        plain = generate_groups(model, groups, 5)
    assert mixed == separate
    assert plain == generate_groups(alone("plain", family), groups, 5) != mixed


def test_beams_with_an_adapter_for_each_group():
    model, decoding = crowded(), Decoding(5, beams=Beams(3))
    groups = [(group.prefix, [branch.prompt for branch in group.branches]) for group in GROUPS]
    mixed = Generator(model, Letters()).search(groups, decoding, adapters=OF_GROUP)
    separate = [texts for group, name in zip(groups, OF_GROUP)
                for texts in Generator(alone(name), Letters()).search([group], decoding)]
    assert mixed == separate
    assert mixed != Generator(alone("plain"), Letters()).search(groups, decoding)


class Letters:
    """A tokenizer whose tokens are a character each."""

    eos_id, end_ids, vocab_size, origin = 60, {60}, 61, "letters"

    def decode(self, tokens):
        return "".join(chr(65 + token) for token in tokens)


@needs_bf16
@pytest.mark.parametrize("kind", [*KINDS, "whole"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_decoding_in_bf16(family, kind):
    model, tokens = network(family, "bf16"), tiny.tokens(12).tolist()
    if kind == "whole":
        inject(model, LoraConfig(r=2, target_modules=DEFAULT_TARGETS[family][:1], modules_to_save=("1.mlp",)))
    else:
        add(model, kind)
    decoder = FusedReader(model)
    found = decoder.logits([Turn(decoder.open(0, [12]), (), [(0, tokens)])])[0]
    expected = logits(model)[-1]
    assert np.linalg.norm(found - expected) < 4e-2 * np.linalg.norm(expected)
