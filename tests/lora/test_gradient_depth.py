"""Nothing below the first adapted layer takes part in the backward pass."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.lora.layer import LoraLinear
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import Linear, leaf_modules
from jittor_lora.system.runtime import jt


def layers_with_gradient(monkeypatch, variant, targets, **more):
    """Names of the linear layers whose input needs a gradient in training, and the network."""
    source = tiny.VARIANTS[variant]
    model = build_model(tiny.config(source), tiny.tensors(source))
    adapter = inject(model, LoraConfig(4, 8.0, 0.0, targets, **more))
    needed = {}
    for kind in (Linear, LoraLinear):
        def noted(self, x, *rows, run=kind.execute):
            needed[id(self)] = not x.is_stop_grad()
            return run(self, x, *rows)

        monkeypatch.setattr(kind, "execute", noted)
    hidden = model.hidden(tiny.tokens(7), np.arange(7, dtype=np.int32), Layout.plain(7))
    gradients = jt.grad((hidden * hidden).sum(), list(adapter.parameters().values()))
    assert all(np.abs(g.numpy()).max() > 0 for name, g in zip(adapter.parameters(), gradients) if "lora_B" in name)
    return needed, model


@pytest.mark.parametrize("variant, target, above", [
    ("gpt2", r"transformer\.h\.1\.mlp\.c_fc", ["transformer.h.1.mlp.c_proj"]),
    ("llama", r"model\.layers\.1\.mlp\.up_proj", ["model.layers.1.mlp.down_proj"]),
])
def test_only_layers_above_an_adapted_one(monkeypatch, variant, target, above):
    needed, model = layers_with_gradient(monkeypatch, variant, target)
    names = {id(leaf.module): leaf.name for leaf in leaf_modules(model)}
    linear = [leaf for leaf in leaf_modules(model) if isinstance(leaf.module, (Linear, LoraLinear))]
    assert len(needed) == len(linear) - 1  # without the head
    assert [names[layer] for layer, wanted in needed.items() if wanted] == above


def test_the_first_adapted_layer_gets_no_gradient_for_its_input(monkeypatch):
    needed, model = layers_with_gradient(monkeypatch, "gpt2", ("c_attn",))
    first, second = model.transformer.h
    assert not needed[id(first.attn.c_attn)]
    assert needed[id(first.attn.c_proj)] and needed[id(second.attn.c_attn)]


@pytest.mark.parametrize("more", [
    {"use_dora": True}, {"init": "pissa"}, {"bias": "lora_only"}, {"modules_to_save": ("ln_f",)},
    {"use_dora": True, "modules_to_save": ("1.ln_2", "lm_head")}], ids=str)
def test_other_trained_arrays_ask_for_no_more(monkeypatch, more):
    needed, model = layers_with_gradient(monkeypatch, "gpt2", ("transformer.h.1.mlp.c_fc",), **more)
    names = {id(leaf.module): leaf.name for leaf in leaf_modules(model)}
    whole = "1.ln_2" in more.get("modules_to_save", ())  # below c_fc, so that its input has a gradient
    above = [*(["transformer.h.1.mlp.c_fc"] if whole else []), "transformer.h.1.mlp.c_proj"]
    assert [names[layer] for layer, wanted in needed.items() if wanted and layer in names] == above


def test_a_trained_embedding_asks_for_all(monkeypatch):
    needed, _ = layers_with_gradient(monkeypatch, "gpt2", ("c_attn",), modules_to_save=("wpe",))
    assert all(needed.values())
