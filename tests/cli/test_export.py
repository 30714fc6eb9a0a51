"""`jittor-lora export`: a folder that llama.cpp's converter can take, and the reference project's file of weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import model_files
import small_run
import tiny
from jittor_lora.cli.main import main
from jittor_lora.formats.adapter_folder import CONFIG_FILE, write_adapter_folder
from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.formats.tokenizer import read_tokenizer
from jittor_lora.lora.combine import Factors
from jittor_lora.system import runtime

GPT2 = {name: value for name, value in small_run.GPT2.items() if name != "n_inner"}
LLAMA = {**model_files.LLAMA, "max_position_embeddings": 64, "eos_token_id": 299}
MODULE = {"gpt2": "transformer.h.1.attn.c_proj", "llama": "model.layers.1.self_attn.v_proj"}
OUTPUTS = {"gpt2": 32, "llama": 16}


def make(folder, config):
    family = config["model_type"]
    small_run.make_base(folder / "base", config)
    draw = np.random.default_rng(0)
    pair = Factors(draw.standard_normal((2, 32), np.float32) * np.float32(0.1),
                   draw.standard_normal((OUTPUTS[family], 2), np.float32), 2.0)
    write_adapter_folder(folder / "adapter", {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [MODULE[family]],
        "base_model_name_or_path": "base"}, {MODULE[family]: pair})
    return pair


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, here, *arguments: str) -> str:
    before = sorted(map(str, here.rglob("*")))
    assert main(["export", *arguments]) == 2
    assert sorted(map(str, here.rglob("*"))) == before
    return capsys.readouterr().err


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_folder_for_the_converter(here, capsys, config):
    pair, name = make(here, config), MODULE[config["model_type"]]
    assert main(["export", "--adapter", "adapter", "--output", "out"]) == 0
    assert "out: exported; largest logit difference" in capsys.readouterr().out
    written = json.loads((here / "out" / "config.json").read_text())
    needed = {"gpt2": {"n_layer": 2, "n_ctx": 256, "n_embd": 32, "n_head": 2, "layer_norm_epsilon": 1e-5,
                       "architectures": ["GPT2LMHeadModel"]},
              "llama": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
                        "intermediate_size": 64, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "head_dim": 8,
                        "max_position_embeddings": 64, "architectures": ["LlamaForCausalLM"]}}
    expected = {**needed[config["model_type"]], "torch_dtype": "float32", "vocab_size": 300, "eos_token_id": 299}
    assert {key: written[key] for key in expected} == expected
    assert json.loads((here / "out" / "generation_config.json").read_text())["eos_token_id"] == 299
    assert json.loads((here / "out" / "tokenizer.json").read_text())["model"]["merges"]
    assert json.loads((here / "out" / "tokenizer_config.json").read_text())["tokenizer_class"]
    again = read_checkpoint(here / "out")
    assert read_tokenizer(here / "out", again.config).eos_id == 299
    delta = pair.delta().T if config["model_type"] == "gpt2" else pair.delta()
    for tensor, array in tiny.tensors(config).items():
        merged = array + delta if tensor == f"{name}.weight" else array
        np.testing.assert_allclose(again.tensors[tensor], merged, atol=1e-6)


@pytest.mark.parametrize("verb", ["merge", "export"])
def test_threads(here, verb):
    make(here, GPT2)
    before = runtime.threads()
    try:
        assert main([verb, "--adapter", "adapter", "--output", "out", "--threads", str(before + 1)]) == 0
        assert runtime.threads() == before + 1
    finally:
        runtime.set_threads(before)


def test_a_base_alone(here, capsys):
    make(here, GPT2)
    assert main(["export", "--base", "base", "--output", "out"]) == 0
    assert capsys.readouterr().out == "out: exported.\n"
    base = load_file(here / "base" / "model.safetensors")
    assert all(np.array_equal(load_file(here / "out" / "model.safetensors")[name], a) for name, a in base.items())


def test_weights_for_the_reference_project(here):
    pair = make(here, GPT2)
    assert main(["export", "--adapter", "adapter", "--format", "npz", "--output", "gpt2_weights.npz"]) == 0
    found = np.load("gpt2_weights.npz", allow_pickle=False)
    tensors = tiny.tensors(GPT2)
    assert set(found.files) == set(tensors)
    for name, array in tensors.items():
        merged = array + pair.delta().T if name == f"{MODULE['gpt2']}.weight" else array
        np.testing.assert_allclose(found[name], merged, atol=1e-6)


@pytest.mark.parametrize("config, form, expected", [
    ({**GPT2, "activation_function": "gelu"}, "gguf-ready", "activation_function: llama.cpp computes GPT-2 with"),
    ({**GPT2, "scale_attn_weights": False}, "gguf-ready", "llama.cpp divides attention's scores by √head_dim alone"),
    ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "npz", "GPT2_LoRA_Jittor divides attention's scores by"),
    ({**GPT2, "n_inner": 64}, "gguf-ready", "n_inner: the converter writes 4 n_embd = 128, found 64"),
    ({**GPT2, "n_inner": 64}, "npz", "n_inner: GPT2_LoRA_Jittor has 4 n_embd = 128, found 64"),
    ({**GPT2, "tie_word_embeddings": False}, "npz", "tie_word_embeddings"),
    (LLAMA, "npz", "model_type: GPT2_LoRA_Jittor has only GPT-2, found llama"),
])
def test_models_that_the_other_program_computes_differently(here, capsys, config, form, expected):
    make(here, config)
    output = "out.npz" if form == "npz" else "out"
    message = refused(capsys, here, "--base", "base", "--format", form, "--output", output)
    assert f"cannot be exported as {form}" in message and expected in message


def test_a_merge_that_changes_the_logits(here, capsys, monkeypatch):
    make(here, GPT2)
    monkeypatch.setattr("jittor_lora.session.merge_error", lambda model: (0.5, 10.0))
    assert "Merging moves a logit by 5.00e-01" in refused(capsys, here, "--adapter", "adapter", "--output", "out")


@pytest.mark.parametrize("arguments, expected", [
    (["--base", "base"], "--output"),
    (["--base", "base", "--output", "base"], "expected a new or empty folder"),
    (["--base", "base", "--output", "x", "--format", "npz"], "expected a name that ends in .npz"),
    (["--base", "base", "--output", "x", "--format", "onnx"], "gguf-ready, npz"),
    (["--base", "base", "--adapter", "base", "--output", "x"], "expected an adapter folder"),
])
def test_mistakes(here, capsys, arguments, expected):
    make(here, GPT2)
    assert expected in refused(capsys, here, *arguments)


def test_an_adapter_whose_settings_are_hostile(here, capsys):
    make(here, GPT2)
    settings = json.loads((here / "adapter" / CONFIG_FILE).read_text())
    name = "base_model_name_or_path"
    for base, expected in (("../../../etc", "etc"), ("a\0b", name), (3, name)):
        (here / "adapter" / CONFIG_FILE).write_text(json.dumps({**settings, name: base}))
        assert expected in refused(capsys, here, "--adapter", "adapter", "--output", "out")


@pytest.mark.parametrize("form", ["mlx", "litgpt"])
def test_an_adapter_for_another_program_and_back(here, capsys, form):
    """Exported, recognised by what is in the folder, described, converted, and generated with."""
    make(here, LLAMA)
    assert main(["export", "--base", "base", "--format", form, "--output", "out"]) == 2
    assert "--adapter" in capsys.readouterr().err
    assert main(["export", "--base", "base", "--adapter", "adapter", "--format", form, "--output", "out"]) == 0
    assert capsys.readouterr().out == "out: 1 adapted modules.\n"
    texts = []
    for adapter in ("adapter", "out"):
        assert main(["generate", "--base", "base", "--adapter", adapter, "--prompt", "The town", "--precision", "fp32",
                     "--max-new-tokens", "8"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert main(["adapter", "info", "out", "--base", "base"]) == 0
    assert {"mlx": "of mlx-lm, ", "litgpt": "of litgpt, "}[form] in capsys.readouterr().out
    assert main(["adapter", "convert", "out", "back", "--base", "base"]) == 0
    assert "rank 2" in capsys.readouterr().out
    mine, again = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("adapter", "back"))
    assert again.keys() >= mine.keys()
    scaled = {name: array * (2 if name.endswith("lora_B.weight") else 1) for name, array in mine.items()}
    settings = json.loads((here / "back" / "adapter_config.json").read_text())
    of_b = settings["lora_alpha"] / settings["r"]
    for name, array in scaled.items():
        np.testing.assert_allclose(again[name] * (of_b if name.endswith("lora_B.weight") else 1), array, rtol=1e-6)
