"""The settings of an adapter have one definition: in Python, in a run and in PEFT's file they are read, written and
refused alike, each by its own name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jittor_lora.errors import UserError
from jittor_lora.formats.peft_config import peft_settings, read_adapter_config
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.lora_settings import adapter_line, lora_config

# Every field of `LoraConfig` at another value than its default, as the command line has it, and as PEFT's file does.
VALUES = [
    ("r", 4, "lora_r", "4", "r", 4),
    ("alpha", 5.5, "lora_alpha", "5.5", "lora_alpha", 5.5),
    ("dropout", 0.25, "lora_dropout", "0.25", "lora_dropout", 0.25),
    ("target_modules", ("c_fc", "mlp.c_proj"), "target_modules", "c_fc, mlp.c_proj", "target_modules",
     ["c_fc", "mlp.c_proj"]),
    ("target_modules", r".*\.c_(fc|proj)", "target_modules", r".*\.c_(fc|proj)", "target_modules", r".*\.c_(fc|proj)"),
    ("target_modules", "all-linear", "target_modules", "all-linear", "target_modules", "all-linear"),
    ("init", "kaiming", "lora_init", "kaiming", "init_lora_weights", True),
    ("init", "pissa", "lora_init", "pissa", "init_lora_weights", "pissa"),
    ("use_rslora", True, "lora_use_rslora", "yes", "use_rslora", True),
    ("use_dora", True, "lora_use_dora", "yes", "use_dora", True),
    ("rank_pattern", {r"h\.0": 3, "c_fc": 2}, "lora_rank_pattern", r"h\.0=3, c_fc=2", "rank_pattern",
     {r"h\.0": 3, "c_fc": 2}),
    ("alpha_pattern", {"c_fc": 2.5}, "lora_alpha_pattern", "c_fc=2.5", "alpha_pattern", {"c_fc": 2.5}),
    ("layers_to_transform", (0, 2), "lora_layers_to_transform", "0,2", "layers_to_transform", [0, 2]),
    ("exclude_modules", ("c_proj",), "exclude_modules", "c_proj", "exclude_modules", ["c_proj"]),
    ("exclude_modules", r"h\.[01]\..*", "exclude_modules", r"h\.[01]\..*", "exclude_modules", r"h\.[01]\..*"),
    ("modules_to_save", ("ln_f", "wte"), "modules_to_save", "ln_f,wte", "modules_to_save", ["ln_f", "wte"]),
    ("bias", "lora_only", "lora_bias", "lora_only", "bias", "lora_only"),
    ("lora_bias", True, "lora_b_bias", "yes", "lora_bias", True),
]
NAMES = {name for name, *_ in VALUES} | {"qv_only", "layers_pattern"}  # these two need another setting


@pytest.mark.parametrize("name, value, setting, text, key, json_value", VALUES, ids=lambda value: str(value)[:30])
def test_a_value_is_the_same_in_all_forms(tmp_path, name, value, setting, text, key, json_value):
    plain, in_run = {"target_modules": ("c_attn",), "dropout": 0.0}, {"target_modules": "c_attn", "lora_dropout": "0"}
    if name == "lora_bias":  # PEFT has it with this initialisation only
        plain["init"] = in_run["lora_init"] = "kaiming"
    config = LoraConfig(**{**plain, name: value})
    run = RunConfig.resolve(None, {**in_run, setting: text})
    assert lora_config(run, "gpt2") == config
    settings = peft_settings(config, "base", "gpt2")
    assert settings[key] == json_value
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert read_adapter_config(tmp_path / "adapter_config.json") == config


def test_no_field_is_left_out():
    assert {field.name for field in dataclasses.fields(LoraConfig)} == NAMES
    assert RunConfig.lora_names().keys() == NAMES


def test_settings_that_need_another():
    run = RunConfig.resolve(None, {"qv_only": "yes", "lora_layers_to_transform": "1", "lora_layers_pattern": "h",
                                   "target_modules": "c_attn"})
    config = lora_config(run, "gpt2")
    assert (config.qv_only, config.layers_to_transform, config.layers_pattern) == (True, (1,), ("h",))
    settings = peft_settings(config, "base", "gpt2")
    assert "qv_only" not in settings and settings["layers_pattern"] == ["h"]


@pytest.mark.parametrize("family", DEFAULT_TARGETS)
def test_an_unset_setting_has_the_adapters_default(family):
    assert lora_config(RunConfig(lora_dropout=0.0), family) == LoraConfig(target_modules=DEFAULT_TARGETS[family])


# What is refused: as `LoraConfig` has it, as a run does, as the file does where it can, and a part of the message.
REFUSED = [
    ({"r": 0}, {"lora_r": "0"}, {"r": 0}, "expected a whole number from 1 to 4096, found 0"),
    ({"r": 4097}, {"lora_r": "4097"}, {"r": 4097}, "expected a whole number from 1 to 4096"),
    ({"alpha": 0.0}, {"lora_alpha": "0"}, {"lora_alpha": 0}, "expected a number above 0"),
    ({"dropout": 1.0}, {"lora_dropout": "1"}, {"lora_dropout": 1}, "expected a number from 0 to below 1"),
    ({"init": "zeros"}, {"lora_init": "zeros"}, {"init_lora_weights": "zeros"}, "'zeros'"),
    ({"init": "pissa_niter_0"}, {"lora_init": "pissa_niter_0"}, {"init_lora_weights": "pissa_niter_0"},
     "pissa_niter_0"),
    ({"bias": "some"}, {"lora_bias": "some"}, {"bias": "some"}, "lora_only"),
    ({"target_modules": "("}, {"target_modules": "("}, {"target_modules": "("}, "not a regular expression"),
    ({"target_modules": "(a+)+$"}, {"target_modules": "(a+)+$"}, {"target_modules": "(a+)+$"}, "within repetitions"),
    ({"exclude_modules": "("}, {"exclude_modules": "("}, {"exclude_modules": "("}, "not a regular expression"),
    ({"target_modules": ("c_attn", "")}, {"target_modules": ["c_attn", ""]}, {"target_modules": ["c_attn", ""]},
     "expected module names"),
    ({"modules_to_save": ("",)}, {"modules_to_save": [""]}, {"modules_to_save": [""]}, "expected ends of module names"),
    ({"rank_pattern": {"c_fc": 0}}, {"lora_rank_pattern": "c_fc=0"}, {"rank_pattern": {"c_fc": 0}}, "1 to 4096"),
    ({"rank_pattern": {"c_fc": 5000}}, {"lora_rank_pattern": "c_fc=5000"}, {"rank_pattern": {"c_fc": 5000}},
     "1 to 4096"),
    ({"alpha_pattern": {"c_fc": -1.0}}, {"lora_alpha_pattern": "c_fc=-1"}, {"alpha_pattern": {"c_fc": -1}}, "above 0"),
    ({"rank_pattern": {"(": 1}}, {"lora_rank_pattern": "(=1"}, {"rank_pattern": {"(": 1}}, "not a regular expression"),
    ({"layers_to_transform": (-1,)}, {"lora_layers_to_transform": "-1"}, {"layers_to_transform": [-1]},
     "expected numbers of"),
    ({"layers_pattern": ("(",), "layers_to_transform": (1,)},
     {"lora_layers_pattern": "(", "lora_layers_to_transform": "1"},
     {"layers_pattern": ["("], "layers_to_transform": [1]}, "not a regular expression"),
    ({"layers_to_transform": (1,), "target_modules": "all-linear"},
     {"lora_layers_to_transform": "1", "target_modules": "all-linear"},
     {"layers_to_transform": [1], "target_modules": "all-linear"}, "needs names as target_modules, found 'all-linear'"),
]


@pytest.mark.parametrize("ours, run, file, message", REFUSED, ids=lambda value: str(value)[:40])
def test_all_forms_refuse_alike_and_by_their_own_name(tmp_path, ours, run, file, message):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["c_attn"], **file}))
    for refuse, names in ((lambda: LoraConfig(**{"target_modules": ("c_attn",), **ours}), ours),
                          (lambda: RunConfig.resolve(None, {"target_modules": "c_attn", **run}), run),
                          (lambda: read_adapter_config(path), file)):
        with pytest.raises(UserError) as caught:
            refuse()
        assert f"\n  {next(iter(names))}" in str(caught.value) and message in str(caught.value)


def test_a_setting_without_effect_is_refused_where_it_is_given(tmp_path):
    with pytest.raises(UserError, match="layers_pattern: has no effect without layers_to_transform"):
        LoraConfig(layers_pattern=("h",))
    with pytest.raises(UserError, match=r"lora_layers_pattern \(--lora-layers-pattern\): has no effect without "
                                        "lora_layers_to_transform"):
        RunConfig.resolve(None, {"lora_layers_pattern": "h"})
    path = tmp_path / "adapter_config.json"  # PEFT itself leaves such
    path.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["c_attn"], "layers_pattern": ["h"]}))
    assert read_adapter_config(path).layers_pattern is None


def test_queries_and_values_are_of_the_fused_projection():
    for refuse in (lambda: LoraConfig(qv_only=True, target_modules=("c_fc",)),
                   lambda: RunConfig(qv_only=True, target_modules=["c_fc"])):
        with pytest.raises(UserError, match="qv_only.*: expected the fused projection c_attn .* found c_fc"):
            refuse()


def test_a_line_of_the_log_has_what_is_not_the_default():
    assert adapter_line(LoraConfig()) == "rank 8; alpha 16"
    config = LoraConfig(r=4, init="pissa", use_dora=True, target_modules=("c_attn",), rank_pattern={"c_fc": 2},
                        modules_to_save=("ln_f", "wte"), bias="all")
    assert adapter_line(config) == ("rank 4; alpha 16; DoRA; init pissa; saved whole ln_f, wte; biases all; "
                                    "other ranks c_fc=2")
