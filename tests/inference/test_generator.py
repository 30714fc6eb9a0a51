"""The text of a continuation, token by token."""

from __future__ import annotations

import types

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jittor_lora.inference.continuation import Continuation
from jittor_lora.inference.generator import Generator
from tokenizer_kinds import KINDS, TEXTS, make

EOS = 256


def decode(tokens: list[int]) -> str:
    """One byte per token, as the coarsest byte-level BPE."""
    return bytes(tokens).decode("utf-8", "replace")


def pieces(text: str | bytes, *stops: str, trim: bool = False, end: bool = True) -> tuple[list[str], str]:
    """(the pieces emitted at each token and at the end, the whole text)."""
    continuation = Continuation(decode, {EOS}, stops, trim)
    given_out = [continuation.add(token) for token in (text.encode() if isinstance(text, str) else text)]
    if end:
        given_out.append(continuation.add(EOS))
    given_out.append(continuation.finish())
    assert continuation.done and "".join(given_out) == continuation.text
    return given_out, continuation.text


def test_text_is_emitted_at_once():
    assert pieces("ab") == (["a", "b", "", ""], "ab")


def test_a_character_is_emitted_whole():
    assert pieces("é水")[0] == ["", "é", "", "", "水", "", ""]


def test_a_character_cut_off_by_the_end_is_shown_as_such():
    assert pieces(b"a\xe6", end=False) == (["a", "", "\ufffd"], "a\ufffd")


def test_invalid_bytes_are_emitted_with_what_follows():
    assert pieces(b"\xffa")[0] == ["", "\ufffda", "", ""]


def test_stop_text_is_held_back_and_cut():
    assert pieces("abEN ENDx", "END") == (["a", "b", "", "", "EN ", "", "", "", "", "", ""], "abEN ")


def test_a_partial_stop_text_at_the_end_is_emitted():
    assert pieces("abEN", "END") == (["a", "b", "", "", "EN", ""], "abEN")


def test_nothing_is_accepted_after_the_stop():
    continuation = Continuation(decode, {EOS}, ["\n"])
    assert [continuation.add(ord(c)) for c in "a\nb"] == ["a", "", ""]
    assert (continuation.text, continuation.done) == ("a", True)


def test_trim():
    assert pieces(" a b", trim=True) == (["", "a", " ", "b", "", ""], "a b")
    assert pieces(" \n a", "\n", trim=True)[1] == ""


@given(text=st.text("ab\u00e9\n") | st.text(), trim=st.booleans(),
       stops=st.lists(st.text("ab\u00e9\n", min_size=1, max_size=3), max_size=4))
@example(text="aba", stops=["aba", "b"], trim=False)
@example(text="aab", stops=["b", "aab"], trim=False)
def test_pieces_add_up_to_the_text_before_the_stop_that_is_complete_first(text, stops, trim):
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    assert pieces(text, *stops, trim=trim)[1] == (expected.lstrip() if trim else expected)


@given(st.binary(max_size=12))
def test_any_bytes(content):
    assert pieces(content)[1] == content.decode("utf-8", "replace")


@pytest.mark.parametrize("stop", ["aab", "aaab"])
def test_stop_text_that_overlaps_itself(stop):
    assert pieces("xaaaab", stop)[1] == "x" + "aaaab".split(stop)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_up_the_decoded_text_of_any_tokenizer(kind):
    tokenizer = make(kind)
    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        continuation = Continuation(tokenizer.decode, {-1})
        for token in tokens:
            continuation.add(token)
        continuation.finish()
        assert continuation.text == tokenizer.decode(tokens)


def test_a_token_costs_the_decoding_of_few_tokens():
    decoded = []
    continuation = Continuation(lambda tokens: decoded.append(len(tokens)) or decode(tokens), {EOS})
    for token in "é水a🎉b".encode() * 50:
        continuation.add(token)
    assert continuation.text == "é水a🎉b" * 50
    assert max(decoded) <= 8


class Encodes:
    """Plain texts: a context, and a question about it."""

    def __init__(self, shares):
        self.template = type("T", (), {"shares_context": shares})

    def plain_prompt(self, text):
        return "", text

    def prompts(self, context, questions):
        shares = self.template.shares_context
        return (context, list(questions)) if shares else ("", [context + question for question in questions])


@pytest.mark.parametrize("shares, expected", [
    (True, [("", ["p"]), ("c", ["q", "r"]), ("d", ["s"]), ("c", ["t"])]),
    (False, [("", ["p"]), ("", ["cq"]), ("", ["cr"]), ("", ["ds"]), ("", ["ct"])]),
])
def test_questions_share_their_context_where_allowed(shares, expected):
    generator = Generator(None, types.SimpleNamespace(encode=list))
    generator.encoder = Encodes(shares)
    assert generator.groups([(None, "p"), ("c", "q"), ("c", "r"), ("d", "s"), ("c", "t")]) == expected
