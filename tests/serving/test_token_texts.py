"""Single tokens as they are within a text, for every kind of tokenizer."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jittor_lora.formats.tokenizer import read_tokenizer
from jittor_lora.serving.api.token_texts import Offsets, TokenTexts
from tokenizer_kinds import KINDS, make, save

TEXT = st.text(st.sampled_from(" \nazthe中国0:?.'é🎉"), min_size=1, max_size=12)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    return read_tokenizer(save(tmp_path_factory.mktemp("tokenizer"), make(request.param)))


@given(text=TEXT)
@settings(max_examples=60)
def test_tokens_add_up_to_the_text(tokenizer, text):
    texts, ids = TokenTexts(tokenizer), tokenizer.encode("the town " + text)
    whole = b"".join(map(texts.bytes, ids)).decode("utf-8", "replace")
    if tokenizer.algorithm == "WordPiece":  # puts a space before each word, but not before the first of a text
        whole, text = whole.replace(" ", ""), text.replace(" ", "")
        assert whole == tokenizer.decode(ids).replace(" ", "")
    else:
        assert whole.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")
    for token in ids:
        spelled = texts.text(token)
        if spelled.startswith("bytes:"):
            assert codecs.escape_decode(spelled[len("bytes:"):])[0] == texts.bytes(token)
        else:
            assert spelled.encode() == texts.bytes(token)


@given(text=TEXT)
@settings(max_examples=30)
def test_offsets_are_where_the_tokens_start(tokenizer, text):
    texts, offsets = TokenTexts(tokenizer), Offsets()
    ids = tokenizer.encode("the town " + text)
    whole = b"".join(map(texts.bytes, ids)).decode("utf-8", "replace")
    for token in ids:
        at = offsets.add(texts.bytes(token))
        if not texts.text(token).startswith("bytes:"):
            assert whole.startswith(texts.text(token), at)
