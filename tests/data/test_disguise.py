from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.disguise import Disguise

TEXT = st.text("<|se>_ \n\ue000\U000f0000", max_size=12)
TOKENS = st.lists(st.text("<|se>_", min_size=1, max_size=6), min_size=1, max_size=4)


@given(TOKENS, st.lists(TEXT, min_size=1, max_size=3))
def test_texts_come_back(tokens, texts):
    disguised, back = Disguise(tokens)(texts)
    assert [text.translate(back) for text in disguised] == texts
    assert [len(text) for text in disguised] == [len(text) for text in texts]
    assert [text.strip().translate(back) for text in disguised] == [text.strip() for text in texts]


@given(TOKENS, TEXT, TEXT, TEXT, st.booleans())
def test_no_special_token_takes_a_letter_of_the_text(tokens, before, text, after, trimmed):
    (disguised,), _ = Disguise(tokens)([text])
    disguised = disguised.strip() if trimmed else disguised
    whole, start, end = before + disguised + after, len(before), len(before) + len(disguised)
    for token in tokens:
        for i in range(len(whole)):
            if whole.startswith(token, i):
                assert i + len(token) <= start or i >= end or start == end


def test_texts_without_special_tokens_stay_as_they_are():
    assert Disguise(["<|end|>"])(["a < b", "", "| x", "endless"]) == (["a < b", "", "| x", "endless"], {})
    assert Disguise([])(["<|end|>"]) == (["<|end|>"], {})
