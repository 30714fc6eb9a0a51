"""Chinese GPT-2 with vocab.txt: ids are those of transformers' BertTokenizer."""

from __future__ import annotations

import random

import pytest
import transformers

from jittor_lora.formats.tokenizer import read_tokenizer
from word_piece_files import TEXTS, make_folder, vocabulary

pytestmark = pytest.mark.parity

SETTINGS = [
    None, {}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True}, {"tokenize_chinese_chars": False, "do_lower_case": False},
    {"tokenizer_class": "BertTokenizer", "sep_token": "[SEP]", "cls_token": "[CLS]"},
]


def hostile(count: int) -> list[str]:
    """Texts of characters of all kinds in any order."""
    draw = random.Random(0)
    characters = sorted({c for text in TEXTS for c in text}) + ["\u0301", "e\u0301", "\u3042\u3099", "[SEP]", "##"]
    return ["".join(draw.choices(characters, k=draw.randint(1, 40))) for _ in range(count)]


def check(folder, texts):
    theirs, ours = transformers.BertTokenizerFast.from_pretrained(folder), read_tokenizer(folder)
    for text in texts:
        expected = theirs(text, split_special_tokens=True)["input_ids"]
        assert ours.end(ours.begin(text)) == expected, text
        assert ours.begin(text) == expected[:-1]
    ours.special_tokens = "token"
    for text in texts:
        assert ours.begin(text) == theirs(text)["input_ids"][:-1], text


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_ids_of_texts(tmp_path, settings):
    check(make_folder(tmp_path, settings), [*TEXTS, *hostile(200)])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_saved_is_the_same_tokenizer(tmp_path, settings):
    ours = read_tokenizer(make_folder(tmp_path / "model", settings))
    ours.save(tmp_path / "saved")
    check(tmp_path / "saved", TEXTS)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.eos_token == "[SEP]" and theirs("天气")["input_ids"] == ours.end(ours.begin("天气"))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_transformers_saves(tmp_path, settings):
    folder = make_folder(tmp_path / "model", settings)
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    check(tmp_path / "saved", TEXTS)


def test_the_class_that_auto_tokenizer_chooses(tmp_path):
    folder = make_folder(tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)
    assert [ours.end(ours.begin(text)) for text in TEXTS] == [theirs(text, split_special_tokens=True)["input_ids"]
                                                              for text in TEXTS]


def test_words_decode_as_in_transformers(tmp_path):
    """Texts without Chinese characters."""
    folder = make_folder(tmp_path, {"do_lower_case": False})
    theirs, ours = transformers.BertTokenizerFast.from_pretrained(folder), read_tokenizer(folder)
    ids = [i for i, token in enumerate(vocabulary()) if i > 4 and all(c < "\u3000" for c in token)]
    for seed in range(50):
        some = random.Random(seed).choices(ids, k=12)
        assert ours.decode(some) == theirs.decode(some)
