"""LoRA for any Jittor module against PEFT on the same module in PyTorch: outputs, gradients, steps, files both ways."""

from __future__ import annotations

import hypothesis
import numpy as np
import peft
import pytest
import torch
from hypothesis import strategies as st
from peft.tuners.lora.layer import MultiheadAttention as PeftAttention
from safetensors.numpy import load_file

from jittor_lora import (
    LoraConfig,
    adapt,
    adapter_state_dict,
    adapters_of,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
    trainable,
)
from jittor_lora.formats.adapter_check import COUNTER
from jittor_lora.formats.peft import keys
from jittor_lora.formats.peft_config import peft_settings
from jittor_lora.system.runtime import jt
from parity.module_pairs import copied, inputs, pair

pytestmark = pytest.mark.parity

TEXT, IMAGE = ("embed", "convolve", "attention", "0", "head"), ("stem", "grouped", "point", "head")
STEPS = 10

# Name → module, settings beside r = 4, alpha = 8
OPTIONS = {
    "text": ("text", {"target_modules": TEXT}),
    "text-kaiming-rslora": ("text", {"target_modules": TEXT, "init": "kaiming", "use_rslora": True}),
    "text-patterns": ("text", {"target_modules": TEXT, "rank_pattern": {"attention": 2, "0": 3, "embed": 5},
                               "alpha_pattern": {"convolve": 3.0}}),
    "text-dora": ("text", {"target_modules": ("embed", "convolve", "0", "head"), "use_dora": True}),
    "text-saved": ("text", {"target_modules": ("attention", "0"), "modules_to_save": ("norm", "head")}),
    "text-saved-sequence": ("text", {"target_modules": ("convolve",), "modules_to_save": ("body",)}),
    "text-biases": ("text", {"target_modules": ("convolve", "0", "head"), "bias": "lora_only"}),
    "text-lora-bias": ("text", {"target_modules": ("convolve", "0", "head"), "lora_bias": True}),
    "text-expression": ("text", {"target_modules": r".*(conv|body\.2).*", "exclude_modules": r"body"}),
    "text-pissa": ("text", {"target_modules": ("0", "2", "head"), "init": "pissa"}),
    "text-olora": ("text", {"target_modules": ("0", "2", "head"), "init": "olora"}),
    "image": ("image", {"target_modules": IMAGE}),
    "image-dora": ("image", {"target_modules": ("stem", "point", "head"), "use_dora": True}),
    "image-biases": ("image", {"target_modules": IMAGE, "bias": "all"}),
}


def settings(**more) -> LoraConfig:
    return LoraConfig(**{"r": 4, "alpha": 8.0, **more})


def theirs_of(config: LoraConfig, module: torch.nn.Module, **more) -> peft.PeftModel:
    values = {**peft_settings(config, "", ""), "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None,
              "inference_mode": False, **more}
    values.pop("peft_type")
    return corrected(peft.get_peft_model(module, peft.LoraConfig(**values)))


def corrected(model: peft.PeftModel) -> peft.PeftModel:
    """PEFT up to 0.21 adds the update of an attention's out_proj twice to its weight, and takes it off twice
    (huggingface/peft pull request 3774): once in `MultiheadAttention.merge`, and once more in that of the layer
    within, which is left out here."""
    for module in model.modules():
        if isinstance(module, PeftAttention):
            module.base_layer.out_proj.merge = module.base_layer.out_proj.unmerge = lambda *args, **kwargs: None
    return model


def both(option: str, tmp_path):
    """Ours and theirs with the same adapter: theirs, after which B is random, read here."""
    kind, more = OPTIONS[option]
    ours, theirs = pair(kind)
    config = settings(**more)
    theirs = theirs_of(config, theirs)
    draw = torch.Generator().manual_seed(3)
    if not config.changes_base:
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3
                if "magnitude" in name:
                    parameter.data = parameter.data.abs() + 0.5
        theirs.save_pretrained(tmp_path / "theirs")
        load_adapter(ours, tmp_path / "theirs")
    else:
        adapt(ours, config)
    return kind, ours.eval(), theirs.eval()


def results(kind: str, ours, theirs):
    batch = inputs(kind)
    return ours(jt.array(batch)), theirs(torch.from_numpy(batch).long() if kind == "text" else torch.from_numpy(batch))


def their_arrays(theirs) -> dict[str, torch.nn.Parameter]:
    """PEFT's trained arrays by the names in its file."""
    found = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            found[name.replace(".default", "").replace(".modules_to_save", "").replace(
                "lora_magnitude_vector.weight", "lora_magnitude_vector")] = parameter
    return found


def our_arrays(ours) -> dict[str, jt.Var]:
    adapter = adapters_of(ours)["default"]
    parameters = adapter.parameters()
    return {key: parameters[name] for name, key in keys(parameters, adapter).items()}


@pytest.mark.parametrize("option", OPTIONS)
def test_outputs_gradients_and_files_agree(option, tmp_path):
    kind, ours, theirs = both(option, tmp_path)
    ours.train()
    theirs.train()
    y, their_y = results(kind, ours, theirs)
    np.testing.assert_allclose(y.numpy(), their_y.detach().numpy(), rtol=2e-4, atol=2e-5)

    (their_y**2).sum().backward()
    arrays, their = our_arrays(ours), their_arrays(theirs)
    assert arrays.keys() == their.keys()
    gradients = jt.grad((y * y).sum(), list(arrays.values()))
    for (name, _), gradient in zip(arrays.items(), gradients):
        expected = their[name].grad.numpy()
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max() + 1e-5,
                                   err_msg=name)


@pytest.mark.parametrize("option", [option for option in OPTIONS if "pissa" not in option and "olora" not in option])
def test_files_go_both_ways_unchanged(option, tmp_path):
    kind, ours, theirs = both(option, tmp_path)
    save_adapter(ours, tmp_path / "ours")
    written, expected = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs"))
    copies = {name for name in expected if name.endswith(COUNTER) or ".original_module." in name
              or ".modules_to_save." in name}
    assert written.keys() == (expected.keys() - copies) | {name for name in copies if name.endswith(COUNTER)}
    for name, array in written.items():
        if name.endswith(COUNTER):
            continue
        assert array.dtype == expected[name].dtype and array.tobytes() == expected[name].tobytes(), name
    state = adapter_state_dict(ours)
    assert state.keys() == expected.keys() - copies
    assert all(np.array_equal(state[name], written[name]) for name in state)

    _, base = pair(kind)
    loaded = corrected(peft.PeftModel.from_pretrained(base, tmp_path / "ours")).eval()
    _, y = results(kind, ours, loaded)
    expected = results(kind, ours, theirs)[1].detach().numpy()
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("option", ["text", "text-dora", "text-saved", "image", "text-pissa"])
def test_ten_steps_agree(option, optimizer, tmp_path):
    kind, ours, theirs = both(option, tmp_path)
    ours.train()
    theirs.train()
    rate = {"AdamW": 1e-2, "SGD": 1e-3}[optimizer]
    more = {"weight_decay": 0.01} if optimizer == "AdamW" else {"momentum": 0.9}
    step = getattr(jt.optim, optimizer)(trainable(ours), lr=rate, **more)
    their_step = getattr(torch.optim, optimizer)(their_arrays(theirs).values(), lr=rate, **more)
    for _ in range(STEPS):
        y, their_y = results(kind, ours, theirs)
        loss, their_loss = (y * y).mean(), (their_y**2).mean()
        assert loss.item() == pytest.approx(their_loss.item(), rel=2e-4)
        step.step(loss)
        their_step.zero_grad()
        their_loss.backward()
        their_step.step()
    for name, array in our_arrays(ours).items():
        expected = their_arrays(theirs)[name].detach().numpy()
        np.testing.assert_allclose(array.numpy(), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("option", ["text", "text-dora", "image-dora", "text-saved"])
def test_merged_agrees(option, tmp_path):
    kind, ours, theirs = both(option, tmp_path)
    adapters_of(ours).merge()
    theirs.merge_adapter()
    y, their_y = results(kind, ours, theirs)
    np.testing.assert_allclose(y.numpy(), their_y.detach().numpy(), rtol=2e-4, atol=2e-5)


def test_two_adapters_at_once_agree(tmp_path):
    kind, ours, theirs = both("text", tmp_path)
    second = settings(r=2, target_modules=("0", "convolve"), init="kaiming")
    theirs.add_adapter("second", peft.LoraConfig(r=2, lora_alpha=8, target_modules=["0", "convolve"],
                                                 init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "both")
    load_adapter(ours, tmp_path / "both" / "second", name="second")
    assert adapters_of(ours)["second"].config.r == second.r
    for names in (("default", "second"), ("second",), ("second", "default")):
        adapters_of(ours).activate(*names)
        theirs.base_model.set_adapter(list(names))
        y, their_y = results(kind, ours, theirs)
        np.testing.assert_allclose(y.numpy(), their_y.detach().numpy(), rtol=2e-4, atol=2e-5)


def test_peft_adds_the_update_of_out_proj_twice(tmp_path):
    """Once it no longer does, `corrected` and the note in docs/any-module.md can go."""
    kind, ours, _ = both("text", tmp_path)
    theirs = peft.PeftModel.from_pretrained(pair(kind)[1], tmp_path / "theirs").eval()
    state = adapter_state_dict(ours)
    state["base_model.model.attention.base_layer.out_proj.lora_B.weight"] *= 2
    load_adapter_state_dict(ours, state)
    y, their_y = results(kind, ours, theirs)
    np.testing.assert_allclose(y.numpy(), their_y.detach().numpy(), rtol=2e-4, atol=2e-5)


LAYERS = {
    "Linear": lambda library, draw: library.Linear(6, 4, bias=draw(st.booleans())),
    "Embedding": lambda library, draw: library.Embedding(7, 4),
    "Conv1d": lambda library, draw: convolution(library.Conv1d, draw),
    "Conv2d": lambda library, draw: convolution(library.Conv2d, draw),
    "Conv3d": lambda library, draw: convolution(library.Conv3d, draw),
}


def convolution(kind, draw):
    size, stride, padding = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    return kind(4, 6, size, stride, padding, groups=draw(st.sampled_from([1, 2])), bias=draw(st.booleans()))


class Replay:
    """Draws the same values a second time."""

    def __init__(self, draw):
        self._draw, self._values = draw, []

    def first(self, strategy):
        self._values.append(self._draw(strategy))
        return self._values[-1]

    def again(self, strategy):
        return self._values.pop(0)


@pytest.mark.slow
@hypothesis.settings(max_examples=20, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_layers_of_all_kinds_agree(tmp_path_factory, data):
    """Over kinds, ranks, groups, strides, padding, and one or two adapters, with DoRA or rsLoRA."""
    kind = data.draw(st.sampled_from(sorted(LAYERS)))
    replay = Replay(data.draw)
    ours = jt.nn.Sequential(LAYERS[kind](jt.nn, replay.first))
    theirs = torch.nn.Sequential(LAYERS[kind](torch.nn, replay.again))
    copied(ours, theirs)
    groups = getattr(theirs[0], "groups", 1)
    folder = tmp_path_factory.mktemp("adapters")
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    model, names = None, ["default", "second"][: data.draw(st.integers(1, 2))]
    for name in names:
        config = settings(r=2 * data.draw(st.integers(1, 3)), use_rslora=data.draw(st.booleans()),
                          use_dora=groups == 1 and data.draw(st.booleans()))
        of_peft = peft.LoraConfig(r=config.r, lora_alpha=8, target_modules=["0"], use_rslora=config.use_rslora,
                                  use_dora=config.use_dora)
        if model is None:
            model = peft.get_peft_model(theirs, of_peft)
        else:
            model.add_adapter(name, of_peft)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3 + ("magnitude" in name)
    model.save_pretrained(folder)
    for name in names:
        load_adapter(ours, folder / ("" if name == "default" else name), name)
    model.base_model.set_adapter(names)
    adapters_of(ours).activate(*names)
    shape = {"Linear": (3, 2, 6), "Embedding": (3, 2), "Conv1d": (2, 4, 5), "Conv2d": (2, 4, 5, 4),
             "Conv3d": (1, 4, 3, 4, 3) if groups == 1 else (1, 4, 4, 4, 4)}[kind]  # Jittor's with groups: cubes only
    x = np.random.Generator(np.random.Philox(1)).standard_normal(shape).astype(np.float32)
    if kind == "Embedding":
        x = (np.abs(x) * 3).astype(np.int32) % 7
    y, their_y = ours(jt.array(x)), model.eval()(torch.from_numpy(x))
    np.testing.assert_allclose(y.numpy(), their_y.detach().numpy(), rtol=2e-4, atol=2e-5)
    (their_y**2).sum().backward()
    their = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    arrays = {f"{name} {key}": p for name in names for key, p in adapters_of(ours)[name].parameters().items()}
    assert len(their) == len(arrays)
    for (name, _), gradient in zip(arrays.items(), jt.grad((y * y).sum(), list(arrays.values()))):
        adapter, key = name.split()
        part = key.rsplit(".", 1)[-1]
        expected = next(value for full, value in their.items() if f".{part}.{adapter}" in full)
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max() + 1e-5,
                                   err_msg=name)
