"""What PEFT saves beside low-rank updates: read as PEFT reads it, and written so that PEFT reads it back."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tiny
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from jittor_lora.formats.peft import load_adapter, save_adapter
from jittor_lora.lora.inject import adapters_of
from jittor_lora.lora.merge import MergedTensors, merge_error, unties_head
from jittor_lora.model.load import build_model
from parity import reference
from parity.test_peft_files import TOKENS, logits, ours, theirs

pytestmark = pytest.mark.parity
SOURCES = {"gpt2": tiny.GPT2, "llama": tiny.LLAMA, "llama-untied": tiny.VARIANTS["llama-untied"]}
TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens"}


def trained(source, **settings):
    """PEFT's model with an adapter of these settings, everything trainable moved."""
    family = source["model_type"]
    config = {"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": TARGETS[family],
              "fan_in_fan_out": family == "gpt2", **settings}
    model = peft.get_peft_model(theirs(source), peft.LoraConfig(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def both_ways(tmp_path, source, model, tolerance=1e-4, **options):
    """Saved by PEFT, loaded here, saved here, loaded by PEFT: always the same logits. Returns ours."""
    model.save_pretrained(tmp_path / "theirs", **options)
    expected, base = reference.logits(model, TOKENS), logits(ours(source))
    assert np.abs(expected - base).max() > 0.5
    network = ours(source)
    adapter = load_adapter(tmp_path / "theirs", network)
    np.testing.assert_allclose(logits(network), expected, atol=tolerance)
    save_adapter(tmp_path / "ours", adapter, "base", source["model_type"])
    again = peft.PeftModel.from_pretrained(theirs(source), tmp_path / "ours").eval()
    np.testing.assert_allclose(reference.logits(again, TOKENS), expected, atol=tolerance)
    with adapters_of(network).off():
        np.testing.assert_array_equal(logits(network), base)
    assert merge_error(network)[0] < 1e-4
    untied = unties_head(network)
    merged_source = {**source, "tie_word_embeddings": False} if untied else source
    merged = build_model(tiny.config(merged_source), MergedTensors(tiny.tensors(source), network, untied))
    np.testing.assert_allclose(logits(merged), expected, atol=tolerance)
    return network


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("form", ["list", "embedding", "both", "different"])
def test_rows_of_single_tokens(tmp_path, name, form, capsys):
    source = SOURCES[name]
    embedding, tokens = EMBEDDING[source["model_type"]], [int(TOKENS[0]), int(TOKENS[5]), 7]
    indices = {"list": tokens, "embedding": {embedding: tokens}, "both": {embedding: tokens, "lm_head": tokens},
               "different": {embedding: tokens, "lm_head": [3, 4]}}[form]
    if form == "both" and name == "gpt2" or form == "different" and name == "gpt2":
        indices = {f"transformer.{embedding}": tokens, "lm_head": indices["lm_head"]}
    network = both_ways(tmp_path, source, trained(source, trainable_token_indices=indices))
    assert "trainable_token_indices: rows of" in capsys.readouterr().err
    before, after = (load_file(tmp_path / side / WEIGHTS_FILE) for side in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert not [key for key in adapters_of(network)["default"].parameters() if "lora_" not in key]


def test_rows_that_do_not_fit(tmp_path):
    trained(tiny.GPT2, trainable_token_indices=[3, 5]).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    for value, expected in (([3, 61], "has 61 rows in this base, found token 61"), ([3], "one row for each of"),
                            ([3, 3], "one row for each of"), (None, "names no tokens of such a module"),
                            ({"lm_head": [3, 5]}, "names no tokens of such a module"),
                            ([3, -5], "expected a list of up to"), ([3, 5.0], "expected a list of up to")):
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**settings, "trainable_token_indices": value}))
        with pytest.raises(UserError, match=expected):
            load_adapter(tmp_path, ours(tiny.GPT2))


@pytest.mark.parametrize("name", SOURCES)
def test_embeddings_saved_with_an_adapter(tmp_path, name, capsys):
    """Of a vocabulary that was resized to the size that this base has: its rows are others."""
    source = SOURCES[name]
    model = trained(source)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
        if not source.get("tie_word_embeddings", True):
            model.get_output_embeddings().weight.add_(0.1)
    both_ways(tmp_path, source, model, save_embedding_layers=True)
    assert "which differ from the base's" in capsys.readouterr().err


def test_unchanged_embeddings_are_left_out(tmp_path, capsys):
    model = trained(tiny.LLAMA)
    network = both_ways(tmp_path, tiny.LLAMA, model, save_embedding_layers=True)
    assert not adapters_of(network)["default"].config.modules_to_save and not capsys.readouterr().err


@pytest.mark.parametrize("rows, expected", [(64, "tokens were added to the vocabulary"), (50, "of another base")])
def test_embeddings_of_another_size(tmp_path, rows, expected):
    model = theirs(tiny.LLAMA)
    model.resize_token_embeddings(rows, mean_resizing=False)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(UserError, match=expected):
        load_adapter(tmp_path, ours(tiny.LLAMA))


@pytest.mark.parametrize("name, settings", [
    ("llama", {"modules_to_save": ["embed_tokens"]}), ("llama", {"modules_to_save": ["lm_head"]}),
    ("gpt2", {"modules_to_save": ["wte"]}), ("gpt2", {"modules_to_save": ["lm_head"]}),
    ("llama-untied", {"modules_to_save": ["embed_tokens"]}),
    ("llama", {"target_modules": ["q_proj", "embed_tokens"]}), ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    ("llama", {"target_modules": r".*(q_proj|embed_tokens)"}),
    ("gpt2", {"target_modules": ["c_attn", "wte"]}), ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
    ("llama", {"trainable_token_indices": [int(TOKENS[0]), 5]}),
], ids=str)
def test_tied_pairs(tmp_path, name, settings):
    both_ways(tmp_path, SOURCES[name], trained(SOURCES[name], ensure_weight_tying=True, **settings))


def test_a_setting_of_a_newer_peft_is_named(tmp_path, capsys):
    model = trained(tiny.GPT2)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    newer = {**settings, "peft_version": "9.1", "use_next": {"a": 1}, "unused": None, "off": False}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(newer))
    network = ours(tiny.GPT2)
    load_adapter(tmp_path, network)
    np.testing.assert_allclose(logits(network), reference.logits(model, TOKENS), atol=1e-4)
    message = capsys.readouterr().err
    assert "use_next: {'a': 1}" in message and "'9.1'" in message and "unused" not in message and "off" not in message
    arrays = load_file(tmp_path / WEIGHTS_FILE)
    arrays["base_model.model.transformer.h.0.attn.c_attn.lora_next.weight"] = np.ones((3, 3), np.float32)
    save_file(arrays, tmp_path / WEIGHTS_FILE)
    with pytest.raises(UserError, match="lora_next"):
        load_adapter(tmp_path, ours(tiny.GPT2))


def decaying(source):
    """Weights whose singular values fall as those of trained models do, so that their largest ones are found."""
    made = tiny.tensors(source)
    for name, array in made.items():
        if array.ndim == 2:
            u, s, vt = np.linalg.svd(array, full_matrices=False)
            made[name] = ((u * (s[0] * 0.7 ** np.arange(len(s)))) @ vt).astype(np.float32)
    return made


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_pissa_by_iterations_unconverted(tmp_path, name, capsys):
    """As near to the model that was trained as PEFT itself is when it loads the adapter."""
    source = SOURCES[name]
    tensors = decaying(source)
    model = peft.get_peft_model(reference.network(source, tensors), peft.LoraConfig(
        r=4, lora_alpha=4, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM",
        init_lora_weights="pissa_niter_16"))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path)
    expected, base = reference.logits(model, TOKENS), logits(build_model(tiny.config(source), tensors))
    network = build_model(tiny.config(source), tensors)
    load_adapter(tmp_path, network)
    again = peft.PeftModel.from_pretrained(reference.network(source, tensors), tmp_path).eval()
    of_peft = np.abs(reference.logits(again, TOKENS) - expected).max()
    found = np.abs(logits(network) - expected).max()
    assert found < max(2 * of_peft, 1e-3) and found < 0.01 * np.abs(expected - base).max()
    assert "init_lora_weights: pissa_niter_16" in capsys.readouterr().err
