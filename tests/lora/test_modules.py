"""LoRA for any Jittor module: what is found, adapted, frozen, trained, merged, saved and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jittor_lora import (
    LoraConfig,
    UserError,
    adapt,
    adapter_state_dict,
    adapters_of,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
    trainable,
)
from jittor_lora.system.runtime import jt

nn = jt.nn
ALL = ("embed", "convolve", "attention", "0", "head")


class Net(nn.Module):
    def __init__(self):
        self.embed = nn.Embedding(9, 6)
        self.convolve = nn.Conv1d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.attention = jt.attention.MultiheadAttention(6, 2)
        self.body = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
        self.layers = [nn.Linear(6, 6)]
        self.head = nn.Linear(6, 3)

    def execute(self, ids):
        x = self.norm(self.convolve(self.embed(ids).transpose(0, 2, 1))).transpose(0, 2, 1)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.layers[0](self.body(x)))


def config(**more) -> LoraConfig:
    return LoraConfig(**{"r": 2, "alpha": 4.0, "target_modules": ALL, **more})


def net() -> Net:
    jt.set_global_seed(5)
    module = Net().eval()
    jt.sync_all()
    return module


def randomised(adapters, name="default", seed=1) -> None:
    draw = np.random.Generator(np.random.Philox(seed))
    adapter = adapters[name]
    adapter.load({key: draw.standard_normal(p.shape).astype(np.float32) * 0.3
                  for key, p in adapter.parameters().items()})
    jt.sync_all()  # else what comes next may be fused with it, which changes last bits


IDS = jt.array(np.arange(10).reshape(2, 5) % 9)


def bits(array) -> bytes:
    return array.numpy().tobytes()


# --- what is computed ------------------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_off_is_the_base_bit_for_bit():
    module = net()
    before = module(IDS).numpy()
    adapters = adapt(module, config())
    np.testing.assert_allclose(module(IDS).numpy(), before, rtol=1e-5, atol=1e-6)
    randomised(adapters)
    assert np.abs(module(IDS).numpy() - before).max() > 1e-2
    with adapters.off():
        assert bits(module(IDS)) == before.tobytes()
    adapters.delete("default")
    assert bits(module(IDS)) == before.tobytes() and type(module.head) is nn.Linear


def test_merging_three_times_equals_once():
    module = net()
    adapters = adapt(module, config())
    randomised(adapters)
    before = module(IDS).numpy()
    adapters.merge()
    once = bits(module(IDS))
    np.testing.assert_allclose(module(IDS).numpy(), before, rtol=1e-4, atol=1e-5)
    adapters.merge()
    adapters.merge()
    assert bits(module(IDS)) == once
    adapters.unmerge()
    assert bits(module(IDS)) == before.tobytes()


def test_several_adapters_are_switched_and_stacked():
    module = net()
    first = config(target_modules=("0", "head"))
    adapters = adapt(module, first, "first")
    adapt(module, config(target_modules=("convolve", "head")), "second")
    randomised(adapters, "first")
    randomised(adapters, "second", 2)
    assert adapters.active == ("first",) and adapters is adapters_of(module)
    outputs = {}
    for names in (("first",), ("second",), ("first", "second"), ()):
        adapters.activate(*names)
        outputs[names] = module(IDS).numpy()
        assert len(trainable(module)) == sum(len(adapters[name].parameters()) for name in names)
    assert len({output.tobytes() for output in outputs.values()}) == 4


def test_a_module_at_two_names_stays_one():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module.layers["2"] = module.layers["0"]
    adapters = adapt(module, config(target_modules="all-linear"))
    assert module[0] is module[2] and list(adapters["default"].updates) == ["0"]
    adapters.delete("default")
    assert module[0] is module[2] and type(module[0]) is nn.Linear


def test_layers_in_lists_and_dicts_are_found():
    module = nn.Module()
    module.blocks, module.heads, module._hidden = [nn.Linear(3, 3)], {"a": nn.Linear(3, 2)}, [nn.Linear(3, 3)]
    adapters = adapt(module, config(target_modules="all-linear"))
    assert sorted(adapters["default"].updates) == ["blocks.0", "heads.a"]
    assert type(module._hidden[0]) is nn.Linear and type(module.blocks[0]) is not nn.Linear


def test_an_adapted_layer_still_tells_what_the_layer_does():
    module = net()
    adapt(module, config())
    assert (module.head.in_features, module.convolve.kernel_size, module.attention.num_heads) == (6, (3, 1), 2)
    assert "Linear" in str(module)
    assert not hasattr(module.head, "no_such_thing")


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_every_kind_merged_and_beside_is_the_same(data):
    """Over kinds, sizes, ranks, groups, strides and dilations."""
    kind = data.draw(st.sampled_from(["Linear", "Conv1d", "Conv2d", "Embedding"]))
    groups, rank = data.draw(st.sampled_from([1, 2])), data.draw(st.integers(1, 3)) * 2
    dora = data.draw(st.booleans()) and groups == 1
    stride, dilation, size = (data.draw(st.integers(1, 2)) for _ in range(3))
    draw = np.random.Generator(np.random.Philox(7))
    if kind == "Linear":
        layer, x = nn.Linear(6, 4), draw.standard_normal((2,) * data.draw(st.integers(0, 2)) + (3, 6))
    elif kind == "Embedding":
        layer, x = nn.Embedding(6, 4), draw.integers(0, 6, (2,) * data.draw(st.integers(1, 3)))
    else:
        layer = getattr(nn, kind)(4, 6, size, stride, 1, dilation, groups)
        x = draw.standard_normal((2, 4, 5, 6)[: 3 if kind == "Conv1d" else 4])
    module = nn.Sequential(layer)
    x = jt.array(x.astype(np.int32 if kind == "Embedding" else np.float32))
    before = module(x).numpy()
    adapters = adapt(module, config(r=rank, target_modules=("0",), use_dora=dora))
    np.testing.assert_allclose(module(x).numpy(), before, rtol=1e-4, atol=1e-5)
    randomised(adapters)
    beside = module(x).numpy()
    assert beside.shape == before.shape and np.abs(beside - before).max() > 1e-4
    if groups > 1 and kind.startswith("Conv"):
        with pytest.raises(UserError, match="2 groups"):
            adapters.merge()
        return
    adapters.merge()
    np.testing.assert_allclose(module(x).numpy(), beside, rtol=1e-3, atol=1e-4)
    with adapters.off():
        assert bits(module(x)) == before.tobytes()


def test_a_dilated_convolution_is_merged_exactly():
    flat = nn.Conv2d(3, 4, 3, dilation=2, padding=2, stride=2)
    module = nn.Sequential(flat, nn.ReLU(), nn.Conv3d(1, 2, 2, bias=False))
    x = jt.array(np.random.Generator(np.random.Philox(3)).standard_normal((2, 3, 7, 7)).astype(np.float32))
    y = jt.array(np.ones((1, 1, 3, 4, 3), np.float32))
    adapters = adapt(module, config(target_modules=("0", "2")))
    randomised(adapters)
    beside = [module[0](x).numpy(), module[2](y).numpy()]
    adapters.merge()
    for merged, expected in zip((module[0](x), module[2](y)), beside):
        np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_an_attention_with_keys_and_values_of_other_widths():
    module = nn.Sequential(jt.attention.MultiheadAttention(6, 2, kdim=4, vdim=5))
    for name, p in module.named_parameters():
        p.assign(jt.array(np.random.Generator(np.random.Philox(len(name))).standard_normal(p.shape).astype(np.float32)))
    q, k, v = (jt.array(np.random.Generator(np.random.Philox(n)).standard_normal((3, 2, n)).astype(np.float32))
               for n in (6, 4, 5))
    before = module[0](q, k, v)[0].numpy()
    adapters = adapt(module, config(target_modules=("0",)))
    found = {name.split(".")[1] for name in adapters["default"].parameters()}
    assert found == {"q_proj", "k_proj", "v_proj", "out_proj"}
    randomised(adapters)
    beside = module[0](q, k, v)[0]
    assert all(np.abs(g.numpy()).max() > 0 for g in jt.grad((beside * beside).sum(), trainable(module)))
    assert np.abs(beside.numpy() - before).max() > 1e-2
    adapters.merge()
    np.testing.assert_allclose(module[0](q, k, v)[0].numpy(), beside.numpy(), rtol=1e-4, atol=1e-5)
    with adapters.off():
        assert bits(module[0](q, k, v)[0]) == before.tobytes()


# --- training --------------------------------------------------------------------------------------------------------


def base_arrays(module) -> dict[str, bytes]:
    return {name: bits(p) for name, p in module.named_parameters() if "default" not in name and "running" not in name}


def test_layers_in_lists_are_frozen_and_follow_the_mode():
    module = net()  # `layers` is a list, into which Jittor's train, eval and parameters do not look
    adapters = adapt(module, config(target_modules=("layers.0",), dropout=0.5))
    randomised(adapters)
    assert bits(module(IDS)) == bits(module(IDS)) and module.layers[0].base.weight.is_stop_grad()
    module.train()
    module.norm.eval()
    assert bits(module(IDS)) != bits(module(IDS))


@pytest.mark.parametrize("everything", [False, True])
def test_only_the_adapter_is_trained_whatever_the_mode_was(everything):
    module = net()  # in evaluation mode: Jittor remembers that its arrays were trained
    adapt(module, config())
    frozen = base_arrays(module)
    module.train()
    module.eval()
    module.train()
    optimizer = jt.optim.AdamW(module.parameters() if everything else trainable(module), lr=0.01)
    losses = []
    for _ in range(3):
        loss = (module(IDS) ** 2).mean()
        losses.append(loss.item())
        optimizer.step(loss)
    assert losses[-1] < losses[0] and base_arrays(module) == frozen
    assert all(p.is_stop_grad() for name, p in module.named_parameters() if "default" not in name)
    module.eval()
    assert base_arrays(module) == frozen


def test_gradients_accumulate_and_are_clipped_by_jittors_optimiser():
    module = net()
    adapt(module, config(target_modules=("head",)))
    module.train()
    optimizer = jt.optim.SGD(trainable(module), lr=1.0)
    before = [p.numpy() for p in trainable(module)]
    optimizer.zero_grad()
    optimizer.backward((module(IDS) ** 2).sum())
    optimizer.clip_grad_norm(0.5)
    optimizer.step()
    moved = np.sqrt(sum(np.square(p.numpy() - old).sum() for p, old in zip(trainable(module), before)))
    assert moved == pytest.approx(0.5, rel=1e-3)


def test_jittors_data_sets_schedulers_and_flags_drive_the_training():
    from jittor.dataset import Dataset
    from jittor.lr_scheduler import MultiStepLR

    class Numbers(Dataset):
        """Three ids, and whether their sum is even."""

        def __init__(self):
            super().__init__(batch_size=8, shuffle=False)
            self.ids = np.random.Generator(np.random.Philox(3)).integers(0, 9, (32, 3)).astype(np.int32)
            self.set_attrs(total_len=len(self.ids))

        def __getitem__(self, index):
            return self.ids[index], int(self.ids[index].sum() % 2)

    module = net()
    adapt(module, config(modules_to_save=("norm",)))
    before = {name: array.numpy().copy() for name, array in module.state_dict().items() if ".default." not in name}
    optimizer = jt.optim.AdamW(trainable(module), lr=0.02)
    scheduler, losses, rates = MultiStepLR(optimizer, milestones=[6], gamma=0.1), [], []
    module.train()
    for _ in range(8):
        with jt.flag_scope(lazy_execution=1):
            epoch = [jt.nn.cross_entropy_loss(module(ids)[:, 0], labels) for ids, labels in Numbers()]
            optimizer.step(sum(epoch) / len(epoch))
        losses.append(float(sum(loss.item() for loss in epoch)))
        rates.append(optimizer.lr)
        scheduler.step()
    assert losses[-1] < losses[0] and rates[0] == 0.02 and rates[-1] == pytest.approx(0.002)
    after = module.state_dict()
    assert all(np.array_equal(array, after[name].numpy()) for name, array in before.items())


def test_a_batch_norm_follows_the_mode():
    module = net()
    adapt(module, config())
    mean = bits(module.norm.running_mean)
    module(IDS).sync()
    assert bits(module.norm.running_mean) == mean
    module.train()
    module(IDS).sync()
    assert bits(module.norm.running_mean) != mean


def test_dropout_is_on_in_training_alone_and_reproducible():
    def run(seed=0):
        module = net()
        adapters = adapt(module, config(dropout=0.5, target_modules=("convolve", "head")), seed=seed)
        randomised(adapters)
        outputs = [module(IDS).numpy()]
        module.train()
        module.norm.eval()
        outputs += [module(IDS).numpy(), module(IDS).numpy()]
        module.eval()
        return [output.tobytes() for output in (*outputs, module(IDS).numpy())]

    first = run()
    assert first[0] == first[3] and len(set(first)) == 3
    assert run() == first and run(seed=1)[1] != first[1]


def test_a_saved_module_has_its_own_statistics():
    module = net()
    adapters = adapt(module, config(target_modules=("head",), modules_to_save=("norm",)))
    module.train()
    module(IDS).sync()
    state = adapter_state_dict(module)
    assert np.abs(state["base_model.model.norm.running_mean"]).max() > 0
    with adapters.off():
        assert not module.norm.base.running_mean.numpy().any()


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_adapter_survives_its_files_and_its_state(tmp_path):
    module = net()
    adapters = adapt(module, config(modules_to_save=("norm",), target_modules=("embed", "convolve", "attention", "0")))
    randomised(adapters)
    save_adapter(module, tmp_path / "one")
    other = net()
    load_adapter(other, tmp_path / "one")
    jt.sync_all()
    assert bits(other(IDS)) == bits(module(IDS))
    save_adapter(other, tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    state = adapter_state_dict(module)
    third = net()
    adapt(third, config(modules_to_save=("norm",), target_modules=("embed", "convolve", "attention", "0")))
    load_adapter_state_dict(third, state)
    jt.sync_all()
    assert bits(third(IDS)) == bits(module(IDS))


def test_jittors_own_save_and_load(tmp_path):
    targets = config(exclude_modules=("layers.0",))  # in a list, which `save` leaves out
    module = net()
    randomised(adapt(module, targets))
    module.save(str(tmp_path / "net.pkl"))
    other = net()
    adapt(other, targets, seed=1)
    other.load(str(tmp_path / "net.pkl"))
    jt.sync_all()
    assert bits(other(IDS)) == bits(module(IDS))


def test_an_adapter_of_another_module_is_refused(tmp_path):
    module = net()
    adapt(module, config())
    save_adapter(module, tmp_path)
    other = nn.Sequential(nn.Linear(6, 5))
    with pytest.raises(UserError, match=r"(?s)target_modules|does not fit"):
        load_adapter(other, tmp_path)
    assert type(other[0]) is nn.Linear
    wider = net()
    wider.head = nn.Linear(6, 4)
    with pytest.raises(UserError, match=r"head.lora_B: expected shape \(4, 2\), found \(3, 2\)"):
        load_adapter(wider, tmp_path)
    assert type(wider.head) is nn.Linear


def test_a_state_that_does_not_fit_sets_nothing():
    module = net()
    adapt(module, config())
    state = adapter_state_dict(module)
    key = "base_model.model.head.lora_A.weight"
    before = state[key].copy()
    with pytest.raises(UserError, match="no such array"):
        load_adapter_state_dict(module, {**state, "base_model.model.tail.lora_A.weight": before})
    short = {name: array + 1 for name, array in state.items() if name != key}
    with pytest.raises(UserError, match="head.lora_A: missing"):
        load_adapter_state_dict(module, short)
    assert all(np.array_equal(array, state[name]) for name, array in adapter_state_dict(module).items())


def test_hostile_files_are_refused(tmp_path):
    module = net()
    adapt(module, config())
    save_adapter(module, tmp_path)
    weights, settings_file = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, values = weights.read_bytes(), json.loads(settings_file.read_text())
    for broken in (b"", whole[:100], whole[:-7], b"\xff" * 8 + whole[8:]):
        weights.write_bytes(broken)
        with pytest.raises(UserError):
            load_adapter(net(), tmp_path)
    weights.write_bytes(whole)
    for changed in ({"r": -1}, {"peft_type": "IA3"}, {"target_modules": "("}, {"r": 3}, {"use_qalora": True}):
        settings_file.write_text(json.dumps({**values, **changed}))
        with pytest.raises(UserError):
            load_adapter(net(), tmp_path)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, messages", [
    ({"target_modules": ("norm", "body")}, ["norm: a BatchNorm cannot be adapted", "body: a Sequential cannot be"]),
    ({"use_dora": True}, ["use_dora: not supported for attention"]),
    ({"init": "pissa"}, ["init: pissa is for linear layers, and embed is an embedding", "convolve is a convolution",
                         "not supported for attention"]),
    ({"lora_bias": True}, ["lora_bias: not supported for embed", "lora_bias: not supported for attention"]),
    ({"bias": "all"}, ["attention.in_proj_bias"]),
    ({"target_modules": ("nothing",)}, ["nothing in the model is called nothing"]),
    ({"modules_to_save": ("nothing",)}, ["no module name ends in nothing"]),
    ({"target_modules": ("head",), "modules_to_save": ("attention",)}, ["cannot be trained whole"]),
    ({"target_modules": ("head",), "r": 5, "init": "olora"}, ["at most rank 3"]),
])
def test_what_is_not_supported_is_refused_with_all_offenders(settings, messages):
    module = net()
    with pytest.raises(UserError) as refusal:
        adapt(module, config(**settings))
    assert all(message in str(refusal.value) for message in messages), refusal.value
    assert type(module.head) is nn.Linear and not adapters_of(module)


def test_what_a_convolution_in_groups_cannot_do():
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose(4, 4, 3))
    with pytest.raises(UserError, match="0 has 2 groups, which must divide its rank, found 3"):
        adapt(module, config(r=3, target_modules=("0",)))
    with pytest.raises(UserError, match="use_dora: not defined for 0, which has 2 groups"):
        adapt(module, config(target_modules=("0",), use_dora=True))
    with pytest.raises(UserError, match="a ConvTranspose cannot be adapted"):
        adapt(module, config(target_modules=("1",)))


def test_a_layer_alone_and_what_is_no_module_are_refused():
    with pytest.raises(UserError, match="no layers below it"):
        adapt(nn.Linear(2, 2), config())
    with pytest.raises(TypeError, match="expected a jittor.Module, found list"):
        adapt([nn.Linear(2, 2)], config())
    module = net()
    adapt(module, config())
    with pytest.raises(UserError, match="the name is taken"):
        adapt(module, config())
    with pytest.raises(UserError, match="other than base"):
        adapt(module, config(), "base")
