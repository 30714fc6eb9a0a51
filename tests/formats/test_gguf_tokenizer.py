"""Tokenizers in GGUF files have the ids of the same tokenizer in tokenizer.json."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gguf_tokenizers import (
    BEGIN,
    CALL,
    END,
    HARD,
    PAD,
    PRES,
    byte_level,
    hostile,
    pieces,
    write_byte_level,
    write_sentence_pieces,
)
from jittor_lora.errors import UserError
from jittor_lora.formats.gguf_tokenizer import gguf_tokenizer
from jittor_lora.formats.tokenizer import read_tokenizer


@pytest.mark.parametrize("pre", PRES)
def test_byte_level_tokenizers(tmp_path, pre):
    theirs, ours = byte_level(pre), gguf_tokenizer(write_byte_level(tmp_path / "x.gguf", pre))
    ours.save(tmp_path / "saved")
    again = read_tokenizer(tmp_path / "saved")
    theirs.encode_special_tokens = True
    for text in [*HARD, *hostile()]:
        expected = theirs.encode(text).ids
        assert ours.begin(text) == expected == again.begin(text), text
    theirs.encode_special_tokens, ours.special_tokens = False, "token"
    for text in HARD:
        assert ours.begin(text) == theirs.encode(text).ids, text


@pytest.mark.parametrize("pre", PRES)
def test_their_texts_come_back(tmp_path, pre):
    ours = gguf_tokenizer(write_byte_level(tmp_path / "x.gguf", pre))
    for text in ("e\u0301", "1066 北京", "  a\n\n b"):
        assert ours.decode(ours.encode(text)) == ("é" if pre == "qwen2" and text == "e\u0301" else text)


@pytest.mark.parametrize("pre, stated, begins", [
    ("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False), ("qwen2", True, True),
    ("gpt-2", None, False)])
def test_the_beginning_of_a_text(tmp_path, pre, stated, begins):
    """Llama 3's files may leave it out: their tokenizer.json has it."""
    ours = gguf_tokenizer(write_byte_level(tmp_path / "x.gguf", pre, add_bos_token=stated))
    assert ours.opening == ([byte_level(pre).token_to_id(BEGIN)] if begins else [])
    assert ours.special == (BEGIN, END, PAD)


def test_names_of_the_same_words(tmp_path):
    for name in ("llama3", "llama-v3"):
        file = write_byte_level(tmp_path / "x.gguf", "llama-bpe")
        file.metadata["tokenizer.ggml.pre"] = name
        assert gguf_tokenizer(file).encode("12345") == byte_level("llama-bpe").encode("12345").ids[1:]


# --- SentencePiece -----------------------------------------------------------------------------------------------


def joined(text: str, prefix: bool = True) -> list[int]:
    """SentencePiece's definition: the neighbours whose piece has the highest score are joined, the leftmost first."""
    tokens, scores, types = pieces()
    vocab = {token: i for i, token in enumerate(tokens)}
    symbols = list((" " if prefix and text else "") + text)
    symbols = ["▁" if symbol == " " else symbol for symbol in symbols]
    while True:
        found = [(-scores[vocab[a + b]], i) for i, (a, b) in enumerate(zip(symbols, symbols[1:]))
                 if types[vocab.get(a + b, 0)] == 1]
        if not found:
            break
        _, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [i for symbol in symbols for i in (
        [vocab[symbol]] if types[vocab.get(symbol, 0)] == 1
        else [vocab[f"<0x{byte:02X}>"] for byte in symbol.encode()])]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return gguf_tokenizer(write_sentence_pieces(tmp_path_factory.mktemp("llama") / "x.gguf"))


LETTERS = sorted({c for text in HARD for c in text})


@given(st.text(st.sampled_from(LETTERS) | st.sampled_from(" te▁北學\n\u0378"), max_size=24))
@example("")
@example(" ")
@example("the quick 🎉")
def test_pieces_are_joined_by_score(llama, text):
    assert llama.encode(text) == joined(text)
    assert llama.decode(llama.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize("settings, opening, prefix", [
    ({}, [1], True), ({"add_bos_token": False}, [], True), ({"add_space_prefix": False}, [1], False)])
def test_settings_of_sentence_pieces(tmp_path, settings, opening, prefix):
    ours = gguf_tokenizer(write_sentence_pieces(tmp_path / "x.gguf", **settings))
    ours.save(tmp_path / "saved")
    for tokenizer in (ours, read_tokenizer(tmp_path / "saved")):
        assert (tokenizer.opening, tokenizer.eos_id, tokenizer.special) == (opening, 2, ("<unk>", "<s>", "</s>"))
        for text in HARD:
            if CALL not in text:
                assert tokenizer.encode(text) == joined(text, prefix), text


def test_added_tokens_of_sentence_pieces(llama):
    assert llama.encode(f"a{CALL}")[-1] == len(pieces()[0]) - 1
    assert not {0, 1, 2} & set(llama.encode("<s> <unk></s>"))


@pytest.mark.parametrize("changed, message", [
    ({"scores": None}, "tokenizer.ggml.scores: expected"), ({"scores": [0.5]}, "finite numbers"),
    ({"scores": ["a"]}, "finite numbers"), ({"remove_extra_whitespaces": True}, "expected neither"),
    ({"precompiled_charsmap": [1, 2]}, "expected neither"), ({"unknown_token_id": 10**6}, "expected an id below"),
    ({"token_type": [1]}, "token_type: expected"),
])
def test_sentence_pieces_that_cannot_be_read(tmp_path, changed, message):
    with pytest.raises(UserError, match="x.gguf: ") as caught:
        gguf_tokenizer(write_sentence_pieces(tmp_path / "x.gguf", **changed))
    assert message in str(caught.value)


@pytest.mark.parametrize("tokens, message", [
    (["a", "b"], "expected a token for every byte, or one for what is unknown; <0x00> not found"),
    (["a" * 300, "b"], "expected a token for every byte"),
    ([f"<0x{byte:02X}>" for byte in range(256)] + ["a" * 300], "expected pieces of at most 256 characters; found one"),
])
def test_pieces_that_leave_texts_without_tokens(tmp_path, tokens, message):
    changed = {"tokens": tokens, "scores": [0.5] * len(tokens), "token_type": [1] * len(tokens), "bos_token_id": None,
               "eos_token_id": None, "unknown_token_id": None}
    with pytest.raises(UserError) as caught:
        gguf_tokenizer(write_sentence_pieces(tmp_path / "x.gguf", **changed))
    assert message in str(caught.value)


def test_what_is_saved_names_no_class_of_its_own(tmp_path, llama):
    """A class of transformers would change the steps."""
    llama.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
