from __future__ import annotations

import pytest
from tokenizers import pre_tokenizers

from jittor_lora.formats.byte_level import CHARACTERS, gpt2_tokenizer, parse_merges


def test_every_byte_has_the_librarys_character():
    assert sorted(CHARACTERS) == list(range(256)) and len(set(CHARACTERS.values())) == 256
    assert set(CHARACTERS.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    for byte in range(128):
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(byte))
        assert spelled[0][0] == CHARACTERS[byte]


def test_merges():
    assert parse_merges("#version: 0.2\na b\r\nc d\n\n") == [("a", "b"), ("c", "d")]
    assert parse_merges("# a\n#version: b\n") == [("#", "a"), ("#version:", "b")]
    with pytest.raises(ValueError, match="line 2: expected two tokens; found 'a b c'"):
        parse_merges("a b\na b c\n")


# Made with the published tokenizer.json.
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [15496, 11, 995, 0]),
        ("Context: The Normans", [21947, 25, 383, 11220, 504]),
        ("\nAnswer:", [198, 33706, 25]),
        (" 1066  and\t42", [838, 2791, 220, 290, 197, 3682]),
        ("don't", [9099, 470]),
        ("北京", [44293, 245, 12859, 105]),
    ],
)
def test_the_shipped_tokenizer_is_gpt2s(text, ids):
    tokenizer = gpt2_tokenizer()
    assert tokenizer.get_vocab_size() == 50257 and tokenizer.token_to_id("<|endoftext|>") == 50256
    assert tokenizer.encode(text).ids == ids
