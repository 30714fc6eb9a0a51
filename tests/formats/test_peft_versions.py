"""Files as PEFT versions since 0.3 write them: all settings, and the tensor names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from jittor_lora.formats.peft import load_adapter
from jittor_lora.formats.peft_config import read_adapter_config
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import adapters_of, inject
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt

V03 = {"base_model_name_or_path": "gpt2", "bias": "none", "fan_in_fan_out": True, "inference_mode": True,
       "init_lora_weights": True, "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA",
       "r": 2, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}
V06 = {**V03, "auto_mapping": None, "revision": None, "layers_to_transform": None, "layers_pattern": None,
       "rank_pattern": {}, "alpha_pattern": {}}
V10 = {**V06, "use_rslora": False, "megatron_config": None, "megatron_core": "megatron.core", "loftq_config": {},
       "use_dora": False, "layer_replication": None}
V13 = {**V10, "layers_pattern": [], "exclude_modules": None, "eva_config": None, "lora_bias": False,
       "trainable_token_indices": None, "corda_config": None}
V21 = {**V13, "peft_version": "0.21.2", "use_qalora": False, "qalora_group_size": 16, "target_parameters": None,
       "alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False, "lora_ga_config": None,
       "use_bdlora": None, "kasa_config": None, "velora_config": None, "monteclora_config": None}
VERSIONS = {"0.3": V03, "0.6": V06, "0.10": V10, "0.13": V13, "0.21": V21}

# The features of each version, in its file's settings and in ours, and its names for arrays with these suffixes.
CASES = [
    ("0.3", {}, {}, {}),
    ("0.3", {"bias": "lora_only", "modules_to_save": ["ln_f"]},
     {"bias": "lora_only", "modules_to_save": ("ln_f",)}, {}),
    ("0.3", {"target_modules": ["c_attn", "wte"]}, {"target_modules": ("c_attn", "wte")}, {}),
    ("0.6", {"rank_pattern": {"h.1.attn.c_attn": 3}, "alpha_pattern": {"h.1.attn.c_attn": 5}},
     {"rank_pattern": {"h.1.attn.c_attn": 3}, "alpha_pattern": {"h.1.attn.c_attn": 5}}, {}),
    ("0.6", {"layers_to_transform": 1, "layers_pattern": "h"},
     {"layers_to_transform": (1,), "layers_pattern": ("h",)}, {}),
    ("0.10", {"use_dora": True, "use_rslora": True}, {"use_dora": True, "use_rslora": True}, {}),
    ("0.13", {"use_dora": True}, {"use_dora": True}, {"lora_magnitude_vector": "lora_magnitude_vector.weight"}),
    ("0.13", {"bias": "all", "exclude_modules": ["0.attn.c_attn"]},
     {"bias": "all", "exclude_modules": ("0.attn.c_attn",)},
     {"c_attn.bias": "c_attn.base_layer.bias"}),
    ("0.21", {"init_lora_weights": "olora", "use_dora": False}, None, {}),
    ("0.21", {"bias": "lora_only"}, {"bias": "lora_only"}, {"c_attn.bias": "c_attn.base_layer.bias"}),
]


def network():
    return build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2))


def logits(model):
    with jt.no_grad():
        hidden = model.hidden(tiny.tokens(9), np.arange(9, dtype=np.int32), Layout.plain(9))
        return model.logits(hidden).numpy()


def write(folder, version, changes, arrays, names):
    (folder / CONFIG_FILE).write_text(json.dumps({**VERSIONS[version], **changes}))
    keyed = {}
    for name, array in arrays.items():
        key = name + ".weight" if name.endswith(("lora_A", "lora_B")) else name
        for end, theirs in names.items():
            if key.endswith(end):
                key = key[: -len(end)] + theirs
        keyed["base_model.model." + key] = array
    save_file(keyed, folder / WEIGHTS_FILE, {"format": "pt"})


@pytest.mark.parametrize("version, changes, ours, names", CASES)
def test_files_of_each_version_are_read(tmp_path, version, changes, ours, names):
    if ours is None:
        write(tmp_path, version, changes, {"transformer.h.0.attn.c_attn.lora_A": np.ones((2, 24), np.float32)}, {})
        with pytest.raises(UserError, match="'olora' is not supported for GPT-2"):
            load_adapter(tmp_path, network())
        return
    model = network()
    adapter = inject(model, LoraConfig(**{"r": 2, "alpha": 16.0, "target_modules": ("c_attn",), **ours}))
    adapter.load({name: p.numpy() + np.float32(0.1) for name, p in adapter.parameters().items()})
    write(tmp_path, version, changes, {name: p.numpy() for name, p in adapter.parameters().items()}, names)
    again = network()
    loaded = load_adapter(tmp_path, again)
    np.testing.assert_array_equal(logits(again), logits(model))
    assert np.abs(logits(again) - logits(network())).max() > 0.1
    assert loaded.config.dropout == 0.05


@pytest.mark.parametrize("version", VERSIONS)
def test_unused_settings_do_not_matter(tmp_path, version):
    (tmp_path / CONFIG_FILE).write_text(json.dumps(VERSIONS[version]))
    assert read_adapter_config(tmp_path / CONFIG_FILE) == LoraConfig(
        r=2, alpha=16.0, dropout=0.05, target_modules=("c_attn",), init="kaiming")


def test_missing_keys_have_the_defaults_of_peft(tmp_path):
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "target_modules": ["c_attn"]}))
    assert read_adapter_config(tmp_path / CONFIG_FILE) == LoraConfig(r=8, alpha=8.0, target_modules=("c_attn",),
                                                                     init="kaiming")


def test_copies_of_the_bases_own_weights_are_compared_and_dropped(tmp_path):
    model = network()
    adapter = inject(model, LoraConfig(r=2, alpha=16.0, target_modules=("c_attn", "wte")))
    arrays = {name: p.numpy() for name, p in adapter.parameters().items()}
    table = tiny.tensors(tiny.GPT2)["transformer.wte.weight"]
    changes = {"target_modules": ["c_attn", "wte"]}
    write(tmp_path, "0.21", changes, {**arrays, "transformer.wte.base_layer.weight": table}, {})
    again = network()
    assert load_adapter(tmp_path, again).count() == adapter.count()
    write(tmp_path, "0.21", changes, {**arrays, "transformer.wte.base_layer.weight": table * 2}, {})
    with pytest.raises(UserError, match="transformer.wte.base_layer.weight: the file's copy of the base's weight"):
        load_adapter(tmp_path, network())


def test_a_model_that_refuses_an_adapter_is_unchanged(tmp_path):
    model = network()
    before = logits(model)
    write(tmp_path, "0.21", {}, {"transformer.h.0.attn.c_attn.lora_A": np.ones((2, 25), np.float32),
                                 "transformer.h.0.attn.c_attn.lora_B": np.ones((72, 2), np.float32)}, {})
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path, model)
    for expected in ("h.0.attn.c_attn.lora_A: expected shape (2, 24), found (2, 25)", "h.1.attn.c_attn.lora_B: missing",
                     "The base named in its adapter_config.json: gpt2"):
        assert expected in str(caught.value)
    np.testing.assert_array_equal(logits(model), before)
    assert not adapters_of(model)
