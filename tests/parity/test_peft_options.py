"""Every option of LoRA against PEFT: forward, gradient, ten steps, files both ways, merged."""

from __future__ import annotations

import contextlib

import numpy as np
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import build_stream
from jittor_lora.formats.peft import load_adapter, save_adapter
from jittor_lora.formats.peft_config import peft_settings
from jittor_lora.lora.adapted import ActiveAdapters
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of, inject
from jittor_lora.lora.layer import LoraLinear, Update
from jittor_lora.lora.merge import MergedTensors, merge_error, unties_head
from jittor_lora.model.families import FAMILIES
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import Linear
from jittor_lora.ops import Matrix, frozen
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.training.gradients import gradients_of, stream_loss
from jittor_lora.training.optimizer import AdamW, optimizer_of
from parity import reference

pytestmark = pytest.mark.parity

TOKENS = tiny.tokens(30)
STEPS, RATE = 10, 5e-3
FEW = {"gpt2": ("c_attn", "mlp.c_proj"), "llama": ("q_proj", "v_proj", "down_proj")}

# For each option the settings by family, beside r = 4, alpha = 8 and the default targets.
OPTIONS = {
    "plain": {},
    "kaiming": {"init": "kaiming"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
    "pissa": {"init": "pissa"},
    "pissa-rslora": {"init": "pissa", "use_rslora": True},
    "pissa-dora": {"init": "pissa", "use_dora": True},
    "olora": {"init": "olora"},
    "rank-pattern": {"rank_pattern": {r"[01]\.(attn\.c_attn|self_attn\.q_proj)": 6, "c_proj": 2, "up_proj": 2}},
    "alpha-pattern": {"alpha_pattern": {"c_attn": 3, "v_proj": 3}, "rank_pattern": {r"mlp\..*": 3}},
    "layers": {"layers_to_transform": (1,)},
    "layers-pattern": {"layers_to_transform": (0,), "layers_pattern": ("h", "layers")},
    "exclude": {"exclude_modules": ("mlp.c_proj", "k_proj")},
    "exclude-expression": {"exclude_modules": r".*\.0\..*(c_attn|o_proj)"},
    "save-norm": {"modules_to_save": {"gpt2": ("ln_f", "h.1.ln_2"), "llama": ("model.norm", "input_layernorm")}},
    "save-embedding": {"modules_to_save": {"gpt2": ("wte", "wpe"), "llama": ("embed_tokens",)}},
    "save-head-norms": {"modules_to_save": ("q_norm", "1.self_attn.k_norm")},
    "save-head": {"modules_to_save": ("lm_head",)},
    "save-linear": {"modules_to_save": {"gpt2": ("0.mlp",), "llama": ("1.mlp", "0.self_attn.k_proj")}},
    "bias-all": {"bias": "all"},
    "bias-lora-only": {"bias": "lora_only"},
    "bias-dora": {"bias": "lora_only", "use_dora": True},
    "embedding": {"target_modules": {"gpt2": ("c_attn", "wte", "wpe"), "llama": ("q_proj", "embed_tokens")}},
    "head": {"target_modules": {"gpt2": ("c_attn", "lm_head"), "llama": ("q_proj", "lm_head")}},
    "head-dora": {"target_modules": {"gpt2": ("c_attn", "lm_head"), "llama": ("q_proj", "lm_head")}, "use_dora": True},
    "embedding-dora": {"target_modules": {"gpt2": ("c_attn", "wte"), "llama": ("q_proj", "embed_tokens")},
                       "use_dora": True},
}
SOURCES = {name: tiny.VARIANTS[name] for name in ("gpt2", "llama", "llama-untied", "llama-biased", "qwen2", "qwen3")}
# With a larger base some angles hardly change from position to position, and a key's bias there hardly moves a logit:
# AdamW would make steps of rounding errors.
SOURCES["qwen2"] = {**SOURCES["qwen2"], "rope_theta": 100.0}
# Of the variants that differ from Llama in a part, the options that touch it.
SOME = {
    "llama-untied": ("save-embedding", "save-head", "embedding", "dora", "head"),
    "llama-biased": ("plain", "bias-all", "bias-lora-only", "bias-dora"),
    "qwen2": ("plain", "dora", "pissa", "olora", "save-linear", "bias-all", "bias-lora-only", "bias-dora"),
    "qwen3": ("plain", "dora", "pissa", "olora", "save-linear", "save-norm", "save-head-norms"),
}


def cases():
    for option in OPTIONS:
        for source in SOURCES:
            if source == "llama" and option.startswith("bias"):
                continue  # no biases
            if option not in SOME.get(source, OPTIONS) or (option == "save-head-norms" and source != "qwen3"):
                continue
            if source == "gpt2" and option == "olora":
                continue  # PEFT's start of GPT-2's transposed weights fits no layer
            yield pytest.param(option, source, id=f"{option}-{source}")


def settings_of(option: str, family: str) -> LoraConfig:
    kind = FAMILIES[family].network
    chosen = {key: value[kind] if isinstance(value, dict) and kind in value else value
              for key, value in OPTIONS[option].items()}
    return LoraConfig(**{"r": 4, "alpha": 8.0, "target_modules": DEFAULT_TARGETS[family], **chosen})


def tensors(source):
    return {name: array * np.float32(0.5 if array.ndim == 2 else 1) for name, array in tiny.tensors(source).items()}


def network(source):
    return build_model(tiny.config(source), tensors(source))


def logits(model):
    with jt.no_grad():
        hidden = model.hidden(TOKENS, np.arange(len(TOKENS), dtype=np.int32), Layout.plain(len(TOKENS)))
        return model.logits(hidden).numpy()


def theirs(source, config):
    """PEFT's model of the same settings."""
    family = tiny.config(source).family
    values = {key: value for key, value in peft_settings(config, "base", family).items()
              if key not in ("peft_type", "revision", "inference_mode", "base_model_name_or_path")}
    return peft.get_peft_model(reference.network(source, tensors(source)), peft.LoraConfig(**values))


def moved(adapter, seed=0):
    """The adapter's arrays some way from where training begins."""
    draw = np.random.RandomState(seed)
    return {name: (p.numpy() + 0.1 * draw.standard_normal(p.shape)).astype(np.float32)
            for name, p in sorted(adapter.parameters().items())}


def trained_of(model) -> dict[str, torch.nn.Parameter]:
    """PEFT's trained parameters by our names, and whether they are stored the other way round."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace("base_model.model.", "", 1).replace(".modules_to_save.default.", ".")
            name = name.replace(".default.weight", "").replace(".default", "").replace(".base_layer.", ".")
            found[name] = parameter
    return found


def give(model, adapter, values):
    """Set PEFT's parameters to these values of ours."""
    parameters = trained_of(model)
    assert set(parameters) == set(values), set(parameters) ^ set(values)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(as_theirs(name, values[name], adapter)))


def as_theirs(name, array, adapter):
    version = adapter.versions[name.rpartition(".")[0]]
    turned = name.endswith(".weight") and getattr(getattr(version, "module", None), "stored_transposed", False)
    return np.ascontiguousarray(array.T) if turned else array.copy()


def both(option, source):
    source = SOURCES[source]
    config = settings_of(option, tiny.config(source).family)
    ours = network(source)
    adapter = inject(ours, config, seed=5)
    peft_model = theirs(source, config)
    if option.startswith("pissa") or option == "olora":  # the base that PEFT left must be that of the same start
        values = {name: p.numpy().copy() for name, p in adapter.parameters().items()}
    else:
        values = moved(adapter)
    adapter.load(values)
    give(peft_model, adapter, values)
    return ours, adapter, peft_model, config


def relative(found, expected):
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12)


@pytest.mark.parametrize("option, source", list(cases()))
def test_ten_steps(option, source):
    """Logits, the first gradient, and the parameters after ten steps of AdamW."""
    ours, adapter, peft_model, config = both(option, source)
    peft_model.eval()
    expected = reference.logits(peft_model, TOKENS)
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4)
    groups = tiny.groups(4)
    stream, parameters = build_stream(groups, 0.5), adapter.parameters()
    theirs_by_name = trained_of(peft_model)
    optimizer = torch.optim.AdamW(theirs_by_name.values(), lr=RATE, weight_decay=0.01)
    own = AdamW(parameters, weight_decay=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = reference.loss(peft_model, groups, 0.5)
        loss.backward()
        our_loss = stream_loss(ours, stream) / stream.total_weight
        gradients = dict(zip(parameters, gradients_of(our_loss, list(parameters.values()))))
        assert our_loss.item() == pytest.approx(loss.item(), rel=1e-4), step
        if step == 0:
            for name, parameter in theirs_by_name.items():
                grad = as_theirs(name, gradients[name].numpy(), adapter)
                assert relative(grad, parameter.grad.numpy()) < 1e-4, name
                assert np.abs(grad).max() > 1e-5, name
        optimizer.step()
        own.step(gradients, RATE)
    for name, parameter in theirs_by_name.items():
        found, expected = as_theirs(name, parameters[name].numpy(), adapter), parameter.detach().numpy()
        if name.endswith("c_attn.bias"):  # the keys' biases move no logit; AdamW makes steps of what rounding leaves
            found, expected = (np.delete(bias, np.s_[24:48]) for bias in (found, expected))
        assert relative(found, expected) < 1e-4, name
    np.testing.assert_allclose(logits(ours), reference.logits(peft_model, TOKENS), atol=1e-3)


@pytest.mark.parametrize("option, source, convert", [
    *(pytest.param(*case.values, False, id=f"{case.id}-as-it-is") for case in cases()),
    *(pytest.param(*case.values, True, id=f"{case.id}-converted") for case in cases()
      if case.values[0].startswith(("pissa", "olora")))])
def test_files_both_ways(tmp_path, option, source, convert):
    ours, adapter, _, config = both(option, source)
    adapter.load(moved(adapter, 1))
    expected, base = logits(ours), logits(network(SOURCES[source]))
    assert np.abs(expected - base).max() > 0.05
    family = tiny.config(SOURCES[source]).family
    save_adapter(tmp_path / "ours", adapter, "base", family, convert)
    loaded = peft.PeftModel.from_pretrained(reference.network(SOURCES[source], tensors(SOURCES[source])),
                                            tmp_path / "ours").eval()
    np.testing.assert_allclose(reference.logits(loaded, TOKENS), expected, atol=1e-4)
    loaded.save_pretrained(tmp_path / "theirs")
    again = network(SOURCES[source])
    returned = load_adapter(tmp_path / "theirs", again)
    np.testing.assert_allclose(logits(again), expected, atol=1e-4)
    own = network(SOURCES[source])
    load_adapter(tmp_path / "ours", own)
    np.testing.assert_array_equal(logits(own), logits(again))
    if convert:
        assert returned.config.r == 2 * config.r


@pytest.mark.parametrize("option, source", list(cases()))
def test_merged(option, source):
    ours, adapter, _, _ = both(option, source)
    adapter.load(moved(adapter, 2))
    before = logits(ours)
    difference, largest = merge_error(ours)
    assert difference < 1e-4 and largest > 0.5
    np.testing.assert_array_equal(logits(ours), before)
    with adapters_of(ours).off():
        np.testing.assert_array_equal(logits(ours), logits(network(SOURCES[source])))
    untied = unties_head(ours)
    merged = MergedTensors(tensors(SOURCES[source]), ours, untied)
    source = {**SOURCES[source], "tie_word_embeddings": False} if untied else SOURCES[source]
    np.testing.assert_allclose(logits(build_model(tiny.config(source), merged)), before, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"init": "pissa"}, {"use_dora": True}, {"use_dora": True, "init": "pissa"},
                                      {"use_dora": True, "use_rslora": True, "bias": "lora_only"}])
@pytest.mark.parametrize("kernels", [True, False])
def test_dropout_in_one_layer(settings, kernels):
    """Output and gradients of one layer in training, PEFT's dropout with our mask."""
    draw = np.random.RandomState(0)
    weight, bias = (draw.standard_normal(shape).astype(np.float32) for shape in ((12, 6), (12,)))
    x, towards = draw.standard_normal((9, 6)).astype(np.float32), draw.standard_normal((9, 12)).astype(np.float32)
    config = LoraConfig(r=3, alpha=2.0, dropout=0.4, target_modules=("c_fc",), **settings)
    active = ActiveAdapters()
    active.names = ("default",)
    layer = LoraLinear(Linear(Matrix.of(weight), frozen(bias)), active, "c_fc")
    update = layer.versions["default"] = Update(layer.base, config, "c_fc", with_bias=config.bias != "none")
    values = {name: (p.numpy() + 0.3 * draw.standard_normal(p.shape)).astype(np.float32)
              for name, p in update.trained.items()}
    for name, array in values.items():
        update.trained[name].update(jt.array(array))
    update.dropout_seed = 7

    linear = torch.nn.Linear(6, 12)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    settings_of_peft = {key: value for key, value in peft_settings(config, "base", "llama").items()
                        if key not in ("peft_type", "revision", "inference_mode", "base_model_name_or_path")}
    model = peft.get_peft_model(torch.nn.ModuleDict({"c_fc": linear}),
                                peft.LoraConfig(**{**settings_of_peft, "task_type": None}))
    theirs_layer = model.base_model.model["c_fc"]
    mask = torch.from_numpy(ops.dropout_mask(9, 6, 0.4, 7).numpy())
    theirs_layer.lora_dropout["default"] = Masked(mask)
    parameters = {name.replace("c_fc.", "", 1): p for name, p in trained_of(model).items()}
    assert set(parameters) == set(values)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(values[name]))
    theirs_x = torch.from_numpy(x).requires_grad_()
    expected = theirs_layer.train()(theirs_x)
    (expected * torch.from_numpy(towards)).sum().backward()

    with contextlib.nullcontext() if kernels else ops.portable_operations():
        ours_x = jt.array(x)
        found = layer(ours_x)
        gradients = jt.grad((found * jt.array(towards)).sum(), [ours_x, *update.trained.values()])
        np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), atol=2e-5)
        np.testing.assert_allclose(gradients[0].numpy(), theirs_x.grad.numpy(), atol=2e-5)
        for name, gradient in zip(update.trained, gradients[1:]):
            np.testing.assert_allclose(gradient.numpy(), parameters[name].grad.numpy(), atol=5e-5, err_msg=name)


class Masked(torch.nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask


@pytest.mark.parametrize("option, source", [("plain", "gpt2"), ("dora", "llama"), ("embedding", "gpt2"),
                                            ("save-norm", "gpt2"), ("bias-all", "gpt2"), ("save-embedding", "llama")])
def test_loraplus(option, source):
    """Groups of learning rate and weight decay, in ten steps."""
    ours, adapter, peft_model, _ = both(option, source)
    theirs_by_name = trained_of(peft_model)
    optimizer = create_loraplus_optimizer(peft_model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=6.0,
                                          loraplus_weight_decay=0.1, loraplus_lr_embedding=2e-3)
    config = RunConfig(learning_rate=RATE, loraplus_lr_ratio=6.0, loraplus_lr_embedding=2e-3, weight_decay=0.1)
    own, parameters = optimizer_of(config, adapter), adapter.parameters()
    draw = np.random.RandomState(1)
    for _ in range(STEPS):
        gradients = {name: draw.standard_normal(p.shape).astype(np.float32) for name, p in parameters.items()}
        for name, parameter in theirs_by_name.items():
            parameter.grad = torch.from_numpy(as_theirs(name, gradients[name], adapter))
        optimizer.step()
        own.step({name: jt.array(g) for name, g in gradients.items()}, RATE)
    for name, parameter in theirs_by_name.items():
        found = as_theirs(name, parameters[name].numpy(), adapter)
        np.testing.assert_allclose(found, parameter.detach().numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
