"""Ids of whole prompts and of trained examples are those of AutoTokenizer on the same folder."""

from __future__ import annotations

import json

import pytest
import transformers

from jittor_lora.data.encoding import Encoder
from jittor_lora.formats.tokenizer import read_tokenizer
from jittor_lora.model.config import ModelConfig
from tokenizer_kinds import AROUND, KINDS, TEXTS, make, save

SETTINGS = [
    {}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True},
    {"add_eos_token": True, "add_bos_token": False},
]
CLASSES = [
    ("byte-level", {"tokenizer_class": "GPT2Tokenizer"}),
    ("byte-level", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    ("byte-level with a space before", {"tokenizer_class": "GPT2TokenizerFast"}),
    ("byte-level with a space before", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    ("byte-level with a space before", {"tokenizer_class": None}),
    ("byte-level, Llama-3's words", {"tokenizer_class": "LlamaTokenizerFast"}),
    ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": False}),
    ("llama", {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True}),
]


def check(folder, model_type="llama", texts=TEXTS):
    size = {"vocab_size": 500, "bos_token_id": None, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **size}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = read_tokenizer(folder, ModelConfig.from_hugging_face({"model_type": model_type, **size}, "config.json"))
    closing = theirs("")["input_ids"][len(ours.opening) :]
    encoder = Encoder(ours)
    for text in texts:
        whole = theirs(text, split_special_tokens=True)["input_ids"]
        assert ours.begin(text) + closing == whole, text
        question = "how many houses?"
        prompt = "".join(encoder.template.prompt_pieces(text, question))
        example = encoder.example(text, question, "ten")
        trained = example.prefix + example.prompt + example.completion
        assert trained[: len(trained) - len(ours.ending)] + closing == theirs(
            f"{prompt} ten", split_special_tokens=True)["input_ids"]
        assert trained[len(trained) - len(ours.ending) :] == ours.ending
    ours.special_tokens = "token"
    # LlamaTokenizer of transformers 5 puts a space before the first piece alone, and tokenizer.json before each.
    for text in () if type(theirs).__name__ == "LlamaTokenizer" else ("a <s>b", "[CLS] the</s>", " <s> <s>"):
        assert ours.begin(text) + closing == theirs(text)["input_ids"], text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", ["begin", "several"])
def test_every_kind(tmp_path, kind, around):
    check(save(tmp_path, make(kind, around)))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_stands_around_a_text(tmp_path, around, settings):
    check(save(tmp_path, make("llama", around), **settings))


@pytest.mark.parametrize("kind, settings", CLASSES, ids=str)
def test_classes_of_transformers(tmp_path, kind, settings):
    # LlamaTokenizer of transformers 5 puts no space before a text that begins with one; 4 and sentencepiece do.
    texts = [text for text in TEXTS if "llama" not in kind or not text.startswith((" ", "▁"))]
    check(save(tmp_path, make(kind), **settings), "gpt2" if settings["tokenizer_class"] is None else "llama", texts)
