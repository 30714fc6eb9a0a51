from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

import tokenizer_kinds
from jittor_lora.errors import UserError
from jittor_lora.formats.rendered import RenderedText
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.model.config import ModelConfig

ADDED = [AddedToken("<|end|>", special=True, normalized=False), AddedToken("<|end|>s", special=True, normalized=False),
         AddedToken("<tool>", special=False, normalized=False), AddedToken("l<|", special=False, normalized=True),
         AddedToken("<mask>", special=True, normalized=False, lstrip=True),
         AddedToken("<pad>", special=True, normalized=False, rstrip=True),
         AddedToken("word", special=True, normalized=False, single_word=True)]
PIECES = ["a", "the town", " ", "  ", "\n", "é", "e\u0301", "🎉", "北京", "x1", "<s>", "</s>", "<|end|>", "<|end|>s",
          "<tool>", "l<|", "<mask>", "<pad>", "word", "<", "|>", "\U00100000", "▁"]
MADE: dict[str, tuple] = {}


def made(kind: str):
    if kind not in MADE:
        backend = tokenizer_kinds.make(kind)
        backend.add_tokens(ADDED)
        MADE[kind] = backend, RenderedText(backend)
    return MADE[kind]


@settings(max_examples=400)
@given(st.sampled_from(list(tokenizer_kinds.KINDS)), st.lists(st.sampled_from(PIECES), max_size=10))
def test_ids_are_those_of_the_whole_text(kind, pieces):
    """Where every special token is meant, the library's own ids, and its characters but for spaces around a token."""
    backend, rendered = made(kind)
    text = "".join(pieces)
    special = [span for span in rendered.added(text) if span.special]
    ids, offsets = rendered.encode(text, special)
    expected = backend.encode(text, add_special_tokens=False)
    assert ids == expected.ids
    for index, (start, end), (least, most) in zip(ids, offsets, expected.offsets):
        added = backend.get_added_tokens_decoder().get(index)
        if added and added.special and text[start:end]:
            assert least <= start and end <= most
        elif not (added and added.special):
            assert text[start:end].strip() == text[least:most].strip()


@given(st.lists(st.sampled_from(PIECES), max_size=10))
def test_nothing_is_special_unless_said(pieces):
    backend, rendered = made("byte-level")
    text = "".join(pieces)
    backend.encode_special_tokens = True
    try:
        expected = backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = False
    assert rendered.encode(text, [])[0] == expected


def test_spans():
    _, rendered = made("byte-level")
    text = "a<|end|>swords word <tool>"
    assert [(text[span.start : span.end], span.special) for span in rendered.added(text)] == [
        ("<|end|>s", True), ("word", True), ("<tool>", False)]


def test_a_tokenizer_that_makes_special_tokens_of_letters():
    tokenizer = Tokenizer(tokenizer_kinds.make("unigram"), {}, "model/tokenizer.json", None)
    (span,) = tokenizer.added("<s>")
    assert tokenizer.encode_rendered("<s>", [span])[0] == [span.id]
    with pytest.raises(UserError, match="model/tokenizer.json: .* the special token <s> of the same letters"):
        tokenizer.encode_rendered("a <s>", [])


def test_a_token_without_a_row_in_the_model():
    backend = tokenizer_kinds.make("byte-level")
    backend.add_special_tokens(["<|end|>"])
    tokenizer = Tokenizer(backend, {}, "model/tokenizer.json", None)
    rows = backend.get_vocab_size() - 1
    tokenizer.fit(ModelConfig.from_hugging_face({"model_type": "gpt2", "vocab_size": rows}, "config.json"))
    with pytest.raises(UserError, match="'<|end|>'"):
        tokenizer.encode_rendered("a<|end|>", tokenizer.added("a<|end|>"))
    assert tokenizer.encode_rendered("a<|end|>", [])[0]
