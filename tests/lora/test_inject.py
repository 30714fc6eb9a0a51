from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.lora.config import ALL_LINEAR, DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of, inject, trained_shapes
from jittor_lora.lora.layer import LoraLinear
from jittor_lora.lora.targets import match_targets
from jittor_lora.model.config import ModelConfig, tensor_shapes
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import Linear, leaf_modules
from jittor_lora.system.runtime import jt

NAMES = [f"transformer.h.{i}.{name}" for i in range(12)
         for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


def network(family="gpt2", **changes):
    source = {**tiny.VARIANTS[family], **changes}
    return build_model(tiny.config(source), tiny.tensors(source))


def adapted(family="gpt2", **settings):
    model = network(family)
    adapter = inject(model, LoraConfig(**{"r": 2, "target_modules": DEFAULT_TARGETS[family], **settings}))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return model, adapter


def loss(model):
    hidden = model.hidden(tiny.tokens(10), np.arange(10, dtype=np.int32), Layout.plain(10))
    return (model.logits(hidden) ** 2).mean()


def gradients(model, adapter):
    parameters = adapter.parameters()
    found = jt.grad(loss(model), list(parameters.values()))
    return {name: g.numpy() for name, g in zip(parameters, found)}


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets, expected", [
    (("c_attn",), [n for n in NAMES if n.endswith(".c_attn")]),
    (("c_proj",), [n for n in NAMES if n.endswith(".c_proj")]),  # of attention and of the feed-forward
    (("mlp.c_proj", "c_attn"), [n for n in NAMES if n.endswith(("mlp.c_proj", "c_attn"))]),
    (("transformer.h.3.attn.c_attn",), ["transformer.h.3.attn.c_attn"]),
    (("3.attn.c_attn",), ["transformer.h.3.attn.c_attn"]),  # not of layer 13, were there one
    (r".*\.h\.[01]\..*c_attn", ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]),
    (r".*\.(attn|mlp)\.c_proj", [n for n in NAMES if n.endswith("c_proj")]),
    (ALL_LINEAR, NAMES),
])
def test_targets_select_by_pefts_rules(targets, expected):
    assert match_targets([*NAMES, "lm_head"], LoraConfig(target_modules=targets)) == expected


@pytest.mark.parametrize("targets, idle", [
    (("attn",), "attn"),  # the last parts of a name, not any part
    (("_attn",), "_attn"),  # whole parts
    (("c_attn", "q_proj", "v_proj"), "q_proj, v_proj"),  # each one has to match
    ("c_attn", "c_attn"),  # a regular expression is for the whole name
    ("transformer", "transformer"),
])
def test_a_target_that_matches_nothing_is_told_what_there_is(targets, idle):
    with pytest.raises(UserError) as caught:
        match_targets(NAMES, LoraConfig(target_modules=targets))
    assert f"called {idle}. It has c_attn, c_proj, c_fc" in str(caught.value)


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 5000])
def test_what_is_no_regular_expression(pattern):
    with pytest.raises(UserError, match="not a regular expression"):
        match_targets(NAMES, LoraConfig(target_modules=pattern))


def test_all_linear_is_all_but_the_output_head():
    for family, layers in (("gpt2", 4), ("llama", 7)):
        model = network(family, tie_word_embeddings=False)
        adapter = inject(model, LoraConfig(r=2, target_modules=ALL_LINEAR))
        assert len(adapter.versions) == 2 * layers
        assert {name.rsplit(".", 1)[1] for name in adapter.versions} == set(DEFAULT_TARGETS[family])


def test_the_output_head_is_adapted_where_it_is_named():
    for model in (network(tie_word_embeddings=False), network()):
        adapter = inject(model, LoraConfig(r=2, target_modules=("lm_head", "c_attn"), dropout=0.1))
        assert "lm_head" in adapter.updates
        assert not model.head().trained == isinstance(model.lm_head, Linear)
        adapter.set_dropout(1)
        with pytest.raises(UserError, match="lora_dropout: expected 0 where the output head is adapted"):
            loss(model)


def test_qv_only_needs_the_fused_projection():
    with pytest.raises(UserError, match="qv_only: expected the fused projection c_attn .* found q_proj, v_proj"):
        inject(network("llama"), LoraConfig(target_modules=("q_proj", "v_proj"), qv_only=True))


def test_a_second_adapter_of_the_same_name_is_refused():
    model, _ = adapted()
    with pytest.raises(UserError, match="default: the name is taken"):
        inject(model, LoraConfig(target_modules=ALL_LINEAR))


# --- counts ----------------------------------------------------------------------------------------------------------


def skeleton(config: ModelConfig) -> jt.Module:
    """Modules of the real shapes, without weights."""
    def node(**children):
        made = jt.Module()
        vars(made).update(children)
        return made

    def linear(name):
        rows, columns = tensor_shapes(config)[f"transformer.h.0.{name}.weight"]
        return Linear(SimpleNamespace(shape=(columns, rows)))

    blocks = [node(attn=node(c_attn=linear("attn.c_attn"), c_proj=linear("attn.c_proj")),
                   mlp=node(c_fc=linear("mlp.c_fc"), c_proj=linear("mlp.c_proj"))) for _ in range(config.layers)]
    return node(transformer=node(h=blocks))


def test_trained_values_of_gpt2_124m():
    model = skeleton(ModelConfig.from_hugging_face({"model_type": "gpt2"}, "config.json"))
    adapter = inject(model, LoraConfig(r=8, target_modules=("c_attn", "c_proj", "c_fc")))
    assert adapter.count() == 1_179_648
    assert list(adapter.versions) == NAMES


# --- the adapter in the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_that_is_off_or_new_changes_nothing(family):
    base = loss(network(family)).item()
    model = network(family)
    adapter = inject(model, LoraConfig(r=2, target_modules=DEFAULT_TARGETS[family]))
    assert loss(model).item() == base
    model, adapter = adapted(family)
    assert abs(loss(model).item() - base) > 0.1
    with adapters_of(model).off():
        assert loss(model).item() == base


@pytest.mark.parametrize("settings", [
    {"init": "pissa", "use_dora": True}, {"bias": "all", "modules_to_save": ("wpe",)}], ids=str)
def test_an_adapter_with_given_arrays_is_the_one_they_are_of(settings):
    model, adapter = adapted(**settings)
    arrays = {name: p.numpy() for name, p in adapter.parameters().items()}
    again = network()
    copy = inject(again, adapter.config, arrays=arrays)
    assert list(copy.parameters()) == list(arrays) and copy.initial().keys() == adapter.initial().keys()
    assert loss(again).item() == loss(model).item()


def test_given_arrays_must_fit():
    _, adapter = adapted(init="pissa")
    arrays = {name: p.numpy() for name, p in adapter.parameters().items()}
    name, model = next(iter(arrays)), network()
    with pytest.raises(UserError, match=f"{name}: expected shape"):
        inject(model, adapter.config, arrays={**arrays, name: arrays[name][:1]})
    assert not adapters_of(model)


def test_only_the_named_modules_are_wrapped():
    model, adapter = adapted(target_modules=("mlp.c_proj",))
    assert list(adapter.versions) == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
    block = model.transformer.h[0]
    assert isinstance(block.mlp.c_proj, LoraLinear)
    assert isinstance(block.attn.c_proj, Linear)
    assert adapter.count() == 2 * 2 * (96 + 24)


def test_frozen_weights_get_no_gradient_and_no_update():
    model, adapter = adapted()
    layer = model.transformer.h[0].attn.c_attn
    frozen = [layer.base.weight.var, layer.base.bias, model.transformer.wte.weight.var, model.transformer.ln_f.weight]
    for gradient in jt.grad(loss(model), frozen):
        assert not gradient.numpy().any()
    assert all(np.abs(g).max() > 1e-6 for g in gradients(model, adapter).values())


def test_frozen_stays_frozen_and_trained_stays_trained_across_switches():
    """Jittor's eval() and train() restore what they saw first; whoever calls them must not change what is trained."""
    model = network()
    model.eval()
    for block in model.transformer.h:
        block.eval()
    adapter = inject(model, LoraConfig(r=2, target_modules=DEFAULT_TARGETS["gpt2"]))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    before = gradients(model, adapter)
    for _ in range(2):
        for module in (model, *model.transformer.h):
            module.train()
        for module in (model, *model.transformer.h):
            module.eval()
    for module in (model, *model.transformer.h):
        module.train()
    for leaf in leaf_modules(model):
        if isinstance(leaf.module, LoraLinear):
            assert leaf.module.weight.var.is_stop_grad() and leaf.module.bias.is_stop_grad()
    assert not any(p.is_stop_grad() for p in adapter.parameters().values())
    after = gradients(model, adapter)
    for name, gradient in before.items():
        assert gradient.any()
        np.testing.assert_array_equal(after[name], gradient)


def test_gradients_are_the_slopes_of_the_loss():
    model, adapter = adapted(target_modules=("c_attn", "mlp.c_proj"))
    found = gradients(model, adapter)
    values = {name: p.numpy() for name, p in adapter.parameters().items()}
    for name in values:
        direction = found[name] / np.linalg.norm(found[name])

        def at(h, name=name, direction=direction):
            adapter.load({**values, name: values[name] + np.float32(h) * direction})
            return loss(model).item()

        slope = (at(1e-3) - at(-1e-3)) / 2e-3
        assert slope == pytest.approx(float(np.linalg.norm(found[name])), rel=0.01)


def test_dropout_is_chosen_by_its_key_and_off_without():
    model, adapter = adapted(dropout=0.5)
    without = loss(model).item()

    def at(*key):
        adapter.set_dropout(*key)
        return loss(model).item()

    first = at(1, 2, 3)
    assert first != without
    assert at(1, 2, 3) == first
    assert len({first, at(1, 2, 4), at(1, 3, 3), at(2, 2, 3), at(2**63 - 1, 0, 0)}) == 5
    assert at() == without
    adapter.set_dropout(1)
    assert len({update.dropout_seed for update in adapter.updates.values()}) == len(adapter.updates)


def test_an_adapter_of_another_model_is_refused_with_all_that_is_wrong():
    _, adapter = adapted()
    arrays = {name: p.numpy() for name, p in adapter.parameters().items()}
    before = {name: a.copy() for name, a in arrays.items()}
    first, second, *_ = arrays
    arrays[first] = arrays[first][:1]
    del arrays[second]
    arrays["transformer.h.7.attn.c_attn.lora_A"] = np.ones((2, 24), np.float32)
    with pytest.raises(UserError) as caught:
        adapter.load(arrays)
    message = str(caught.value)
    assert f"{first}: expected shape (2, 24), found (1, 24)" in message
    assert f"{second}: missing" in message
    assert "transformer.h.7.attn.c_attn.lora_A: no such module is adapted" in message
    for name, parameter in adapter.parameters().items():  # and nothing was loaded
        np.testing.assert_array_equal(parameter.numpy(), before[name])


@pytest.mark.parametrize("settings", [
    {}, {"use_dora": True, "rank_pattern": {"c_attn": 3}, "bias": "all"}, {"bias": "lora_only", "use_dora": True},
    {"modules_to_save": ("wte", "ln_f", "1.mlp"), "bias": "all"}, {"target_modules": ("wte", "wpe", "lm_head"),
                                                                   "use_dora": True}], ids=str)
def test_shapes_are_known_before(settings):
    config = LoraConfig(**{"r": 2, "target_modules": ("c_attn", "mlp.c_proj"), **settings})
    model = network()
    expected = trained_shapes(model, config)
    assert not any(isinstance(leaf.module, LoraLinear) for leaf in leaf_modules(model))
    assert expected == {name: tuple(p.shape) for name, p in inject(model, config).parameters().items()}
