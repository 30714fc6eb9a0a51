"""What PEFT saves beside low-rank updates: read as PEFT reads it, and written so that PEFT reads it back."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import model_files
import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.peft import load_adapter, save_adapter
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.lora.inject import adapters_of
from jittor_lora.lora.merge import MergedTensors, merge_error, unties_head
from jittor_lora.model.load import build_model
from jittor_lora.session import load
from jittor_lora.system.runtime import jt
from jittor_lora.tasks.merge import merge
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


# --- added tokens ----------------------------------------------------------------------------------------------------


ADDED = ["<think>", "</think>", "[PAD]"]
TEXT = "The answer <think> is 42</think>."


def base_with_tokenizer(folder, source, untied):
    """A base in files, with the tokenizer of 300 tokens."""
    source = {**source, "vocab_size": 300, "bos_token_id": 299, "eos_token_id": 299,
              **({"tie_word_embeddings": False} if untied else {})}
    tensors = tiny.tensors(source)
    model_files.make_folder(folder, source, tensors)
    model_files.make_bpe().save(str(folder / "tokenizer.json"))
    return source, tensors


def adapter_with_tokens(folder, source, tensors, rows=303, **settings):
    """PEFT's adapter of the base with three tokens more, and the tokenizer beside it; returns PEFT's model."""
    model = reference.network(source, tensors)
    model.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(3)
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table[300:] = torch.randn_like(table[300:])
    family = source["model_type"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{
        "r": 2, "target_modules": TARGETS[family], "fan_in_fan_out": family == "gpt2", "task_type": "CAUSAL_LM",
        **settings}))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    wrapped.eval().save_pretrained(folder, save_embedding_layers=True)
    tokenizer = model_files.make_bpe()
    tokenizer.add_tokens(ADDED)
    tokenizer.save(str(folder / "tokenizer.json"))
    return wrapped


@pytest.mark.parametrize("source, untied, settings", [
    (tiny.GPT2, False, {}), (tiny.LLAMA, False, {}), (tiny.LLAMA, True, {}),
    (tiny.LLAMA, True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    (tiny.LLAMA, False, {"modules_to_save": ["embed_tokens"]}),
    (tiny.LLAMA, False, {"target_modules": ["q_proj", "embed_tokens"]}),
    (tiny.GPT2, False, {"trainable_token_indices": [3, 300, 302]}),
    (tiny.LLAMA, False, {"trainable_token_indices": [3, 300, 302]}),
    (tiny.LLAMA, True, {"trainable_token_indices": {"embed_tokens": [300, 301, 302], "lm_head": [300, 302]}}),
], ids=["gpt2", "tied", "untied", "both-trained", "trained", "updated", "rows-gpt2", "rows", "rows-of-both"])
def test_tokens_that_were_added(tmp_path, source, untied, settings, capsys):
    source, tensors = base_with_tokenizer(tmp_path / "base", source, untied)
    model = adapter_with_tokens(tmp_path / "adapter", source, tensors, **settings)
    session = load(str(tmp_path / "base"), tmp_path / "adapter")
    assert "3 tokens beyond the base's vocabulary of 300 are added" in capsys.readouterr().err
    ids = session.tokenizer.encode(TEXT) + [300, 301, 302]
    stream = Layout.plain(len(ids))
    with jt.no_grad():
        hidden = session.model.hidden(np.asarray(ids, np.int32), np.arange(len(ids), dtype=np.int32), stream)
        found = session.model.logits(hidden).numpy()
    np.testing.assert_allclose(found, reference.logits(model, ids), atol=1e-4)
    assert session.fingerprint == load(str(tmp_path / "base")).fingerprint
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(reference.logits(merged, ids), reference.logits(model, ids), atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids(ADDED[0]) == 300
    text = Generator(session.model, session.tokenizer).continue_text("The answer", Decoding(5))
    assert isinstance(text, str)


def test_added_tokens_that_cannot_be_placed(tmp_path):
    source, tensors = base_with_tokenizer(tmp_path / "base", tiny.LLAMA, False)
    adapter_with_tokens(tmp_path / "adapter", source, tensors)
    tokenizer = tmp_path / "adapter" / "tokenizer.json"
    whole = json.loads(tokenizer.read_text())
    longer = model_files.make_bpe()
    longer.add_tokens([f"<{i}>" for i in range(9)])
    vocabulary = dict(whole["model"]["vocab"])
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    swapped = {**whole, "model": {**whole["model"], "vocab": vocabulary}}
    for content, expected in ((longer.to_str(), "expected from 301 to 303 tokens"),
                              (model_files.make_bpe().to_str(), "expected from 301 to 303 tokens"),
                              (json.dumps(swapped), "found other ids for")):
        tokenizer.write_text(content)
        with pytest.raises(UserError, match=expected):
            load(str(tmp_path / "base"), tmp_path / "adapter")
    tokenizer.unlink()
    with pytest.raises(UserError, match="tokens were added to the vocabulary. Load the base and the adapter together"):
        load(str(tmp_path / "base"), tmp_path / "adapter")


# --- the older file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_the_file_of_older_versions(tmp_path, name):
    """adapter_model.bin, which PEFT writes with torch.save."""
    source = SOURCES[name]
    model = trained(source)
    both_ways(tmp_path, source, model, safe_serialization=False)
    assert (tmp_path / "theirs" / "adapter_model.bin").exists()
    assert not (tmp_path / "theirs" / WEIGHTS_FILE).exists()
    found = read_adapter_folder(tmp_path / "theirs")
    expected = read_adapter_folder(tmp_path / "ours")
    assert found.factors.keys() == expected.factors.keys()
    for module, pair in found.factors.items():
        np.testing.assert_array_equal(pair.a, expected.factors[module].a)
