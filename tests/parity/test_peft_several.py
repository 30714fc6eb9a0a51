"""Several adapters on one base against PEFT: stacks, mixed batches, named folders."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.formats.peft import load_adapter
from jittor_lora.formats.peft_config import peft_settings
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import ensemble_of
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of, inject
from jittor_lora.model.load import build_model
from jittor_lora.session import Session
from jittor_lora.system.runtime import jt
from parity import reference

pytestmark = pytest.mark.parity

LENGTHS = (9, 9, 9, 9)
ADAPTERS = {"one": {"r": 3}, "two": {"r": 2, "use_rslora": True, "dropout": 0.2}, "three": {"r": 4, "alpha": 3.0}}


def pair(family, adapters=ADAPTERS):
    """Ours and PEFT's with these adapters, of the same values."""
    source = tiny.VARIANTS[family]
    ours, theirs = build_model(tiny.config(source), tiny.tensors(source)), None
    for number, (name, settings) in enumerate(adapters.items()):
        config = LoraConfig(**{"alpha": 8.0, "target_modules": DEFAULT_TARGETS[family][: number + 1], **settings})
        adapter = inject(ours, config, name=name)
        draw = np.random.RandomState(number)
        adapter.load({key: (p.numpy() + 0.2 * draw.standard_normal(p.shape)).astype(np.float32)
                      for key, p in adapter.parameters().items()})
        values = {key: value for key, value in peft_settings(config, "base", family).items()
                  if key not in ("peft_type", "revision", "inference_mode", "base_model_name_or_path")}
        if theirs is None:
            network = reference.network(source, tiny.tensors(source))
            theirs = peft.get_peft_model(network, peft.LoraConfig(**values), name)
        else:
            theirs.add_adapter(name, peft.LoraConfig(**values))
        named = dict(theirs.named_parameters())
        with torch.no_grad():
            for key, p in adapter.parameters().items():
                target = f"base_model.model.{key}.{name}"
                named[target if target in named else f"{target}.weight"].copy_(torch.from_numpy(p.numpy()))
    return ours, theirs.eval()


def logits(model, tokens, layout):
    with jt.no_grad():
        positions = np.concatenate([np.arange(length, dtype=np.int32) for length in LENGTHS])[: len(tokens)]
        return model.logits(model.hidden(tokens, positions, layout)).numpy()


@pytest.mark.parametrize("names", [("two",), ("one", "two"), ("three", "one", "two")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_stack(family, names):
    ours, theirs = pair(family)
    adapters_of(ours).activate(*names)
    theirs.base_model.set_adapter(list(names))
    tokens = tiny.tokens(9)
    np.testing.assert_allclose(logits(ours, tokens, Layout.plain(9)), reference.logits(theirs, tokens), atol=1e-4)


@pytest.mark.parametrize("names", [("plain", "dora"), ("dora", "plain"), ("dora", "other")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_stack_with_dora(family, names):
    ours, theirs = pair(family, {"plain": {"r": 2}, "dora": {"r": 3, "use_dora": True}, "other": {"use_dora": True}})
    adapters_of(ours).activate(*names)
    theirs.base_model.set_adapter(list(names))
    tokens = tiny.tokens(9)
    np.testing.assert_allclose(logits(ours, tokens, Layout.plain(9)), reference.logits(theirs, tokens), atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_mixed_batch_over_three_adapters_is_three_runs(family):
    """One stream of four texts, each with another adapter or none; PEFT's mixed batch; and each text for itself."""
    ours, theirs = pair(family)
    names = ("three", "one", None, "two")
    tokens = tiny.tokens(sum(LENGTHS), 3)
    with adapters_of(ours).by_row([name for name, length in zip(names, LENGTHS) for _ in range(length)]):
        mixed = logits(ours, tokens, Layout.plain(*LENGTHS)).reshape(4, 9, -1)
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens.reshape(4, 9).astype(np.int64)),
                          adapter_names=[name or "__base__" for name in names]).logits.numpy()
    np.testing.assert_allclose(mixed, expected, atol=1e-4)
    for text, name in enumerate(names):
        adapters_of(ours).activate(*([name] if name else []))
        alone = logits(ours, tokens.reshape(4, 9)[text], Layout.plain(9))
        np.testing.assert_allclose(mixed[text], alone, atol=1e-5)
    assert min(np.abs(mixed[i] - mixed[j]).max() for i in range(4) for j in range(i)) > 0.1


@pytest.mark.parametrize("names", [("one", "two"), ("three", "one", "two"), (None, "two")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_ensemble_has_the_mean_of_the_probabilities(family, names):
    ours, theirs = pair(family)
    tokens = tiny.tokens(9, 4)
    rows = torch.from_numpy(tokens.astype(np.int64)).repeat(len(names), 1)
    with torch.no_grad():
        found = theirs(input_ids=rows, adapter_names=[name or "__base__" for name in names]).logits
        expected = found.double().softmax(-1).mean(0).log()[-1].numpy()
    reader = ensemble_of(ours, names)
    logs = reader.logits([Turn(reader.open(5, [4]), tokens[:5].tolist(), [(0, tokens[5:].tolist())])])[0]
    np.testing.assert_allclose(logs, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_named_adapters_in_folders(tmp_path, family):
    adapters = {"default": {"r": 3}, "second": {"r": 2, "use_dora": True}}
    ours, theirs = pair(family, adapters)
    theirs.save_pretrained(tmp_path / "theirs")
    source, tokens = tiny.VARIANTS[family], tiny.tokens(9)
    session = Session(build_model(tiny.config(source), tiny.tensors(source)), None, None, Named())
    assert [adapter.name for adapter in session.load_adapters(tmp_path / "theirs")] == ["default", "second"]
    session.save_adapters(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(reference.network(source, tiny.tensors(source)), tmp_path / "ours")
    again.load_adapter(tmp_path / "ours" / "second", "second")
    for name in adapters:
        session.set_adapter(name)
        for model in (theirs, again):
            model.set_adapter(name)
            np.testing.assert_allclose(logits(session.model, tokens, Layout.plain(9)),
                                       reference.logits(model.eval(), tokens), atol=1e-4)


class Named:
    name = "base"


def test_fan_in_fan_out_is_the_bases_business(tmp_path):
    """What the file says of it may be wrong: the base's own layout decides, also for weights that are saved whole."""
    theirs = peft.get_peft_model(reference.network(tiny.GPT2, tiny.tensors(tiny.GPT2)), peft.LoraConfig(
        r=3, target_modules=["c_attn"], modules_to_save=["1.mlp"], fan_in_fan_out=True, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    theirs.eval().save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"fan_in_fan_out": true', '"fan_in_fan_out": false'))
    again = build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2))
    load_adapter(tmp_path, again)
    tokens = tiny.tokens(9)
    np.testing.assert_allclose(logits(again, tokens, Layout.plain(9)), reference.logits(theirs, tokens), atol=1e-4)
