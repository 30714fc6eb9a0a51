"""Chinese GPT-2's vocab.txt. That ids are those of transformers: tests/parity/test_word_piece.py."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.formats.tokenizer import read_tokenizer
from jittor_lora.formats.word_piece import without_spaces
from jittor_lora.inference.continuation import Continuation
from jittor_lora.model.config import ModelConfig
from word_piece_files import SPECIAL, TEXTS, config, make_folder, vocabulary

CLS, SEP = 2, 3


def read(folder, **changed):
    return read_tokenizer(folder, ModelConfig.from_hugging_face(config(**changed), "config.json"))


def refused(folder, **changed) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, **changed)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def pieces(ours, text: str) -> list[str]:
    return [vocabulary()[i] for i in ours.encode(text)]


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "model", {})


def test_a_text_is_cut_into_characters_and_pieces_of_words(folder):
    ours = read(folder)
    assert pieces(ours, "今天loving Café。") == ["今", "天", "l", "##o", "##v", "##ing", "c", "##a", "##f", "##e", "。"]
    assert pieces(ours, "\U0001f600") == ["[UNK]"]


def test_a_prompt_begins_with_cls_and_a_whole_text_ends_with_sep(folder):
    ours = read(folder)
    assert ours.begin("今天") == [CLS, *ours.encode("今天")]
    assert ours.end(ours.begin("今天")) == [CLS, *ours.encode("今天"), SEP]
    assert (ours.eos_id, ours.end_ids, ours.special) == (SEP, {SEP}, tuple(SPECIAL))


def test_the_end_of_text_is_chosen_and_said(folder, tmp_path):
    ours = read(folder)
    (note,) = ours.notes
    assert note == (f"{folder / 'vocab.txt'}: the model names no end of text. [SEP] ends each text, as in the form "
                    "that BERT's tokenizer gives it.")
    ours.save(tmp_path / "saved")
    again = read_tokenizer(tmp_path / "saved")
    assert (again.eos_id, again.notes, again.opening) == (SEP, [], [CLS])
    named = make_folder(tmp_path / "named", {"eos_token": "[PAD]"})
    assert (read(named).eos_id, read(named).ending, read(named).notes) == (0, [SEP, 0], [])


@pytest.mark.parametrize("saved", [False, True])
def test_gpt2s_end_of_text_is_a_character_of_a_larger_vocabulary(folder, tmp_path, saved):
    """transformers writes 50256 as every GPT-2's, and it takes its place where config.json has none."""
    tokens = [*vocabulary(), *(f"[unused{i}]" for i in range(50300 - len(vocabulary())))]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    if saved:
        read(folder).save(tmp_path / "saved")
        (tmp_path / "saved" / "tokenizer_config.json").unlink()
        folder = tmp_path / "saved"
    model = ModelConfig.from_hugging_face(config(vocab_size=50300), "config.json")
    ours = read_tokenizer(folder, model)
    ours.fit(model, model.eos_token_ids)
    assert model.eos_token_id == 50256 and (ours.eos_id, ours.end_ids) == (SEP, {SEP})


def test_an_end_of_text_that_the_model_names(folder):
    model = ModelConfig.from_hugging_face(config(eos_token_id=[4, 60]), "config.json")
    ours = read_tokenizer(folder, model)
    ours.fit(model, model.eos_token_ids)
    assert (ours.eos_id, ours.end_ids, ours.notes) == (4, {SEP, 4}, [])  # 60 is a character


def test_special_tokens_in_a_text_are_text(folder):
    ours = read(folder)
    assert not {CLS, SEP, 0, 4} & set(ours.encode("[CLS] 今天[SEP][PAD] [MASK]"))
    ours.special_tokens = "token"
    assert ours.encode("[CLS]今[SEP]") == [CLS, vocabulary().index("今"), SEP]


@pytest.mark.parametrize("text, expected", [
    ("今天天气很好，去北京。", None), ("我爱Python编程 and the river", "我爱python编程and the river"),
    ("“很好”", None), ("the river , done.", "the river, done."), ("2021年3月", None), ("图书馆 看书", "图书馆看书"),
    ("全角！？１２３，", None), ("learning\nthe", "learning the"), ("", None),
])
def test_decoding_puts_spaces_between_words_alone(folder, text, expected):
    ours = read(folder)
    assert ours.decode(ours.encode(text)) == (text if expected is None else expected)


def test_special_tokens_are_spelled_out(folder):
    ours = read(folder)
    assert ours.decode(ours.end(ours.begin("今天 the"))) == "[CLS]今天the [SEP]"


WHOLE = [i for i, token in enumerate(vocabulary()) if "\ufffd" not in token]


@given(st.lists(st.sampled_from(WHOLE), max_size=12), st.integers(0, 12))
def test_text_in_pieces_is_the_whole_text(pair, tokens, cut):
    before, new = tokens[:cut], tokens[cut:]
    text = Continuation(pair.decode, (), before=before[-8:])
    found = "".join([*map(text.add, new), text.finish()])
    assert pair.decode(tokens) == pair.decode(before) + found


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return read(make_folder(tmp_path_factory.mktemp("model"), {}))


def test_spaces_in_other_texts_stay():
    assert without_spaces("a b 한국 어 й “ c ”") == "a b 한국 어 й “ c ”"
    assert without_spaces("中 文 ， “ 好 ” a 1 。 b") == "中文，“好” a 1。b"


def test_lines_of_a_vocabulary(folder):
    text = "\n".join(vocabulary())
    for written in (text, text + "\n", text.replace("\n", "\r\n"), "\ufeff" + text):
        (folder / "vocab.txt").write_bytes(written.encode())
        assert read(folder).encode("今天") == [vocabulary().index(c) for c in "今天"]
    (folder / "vocab.txt").write_text(text + "\n今", encoding="utf-8")  # the last of equal ones, as in transformers
    assert read(folder).encode("今") == [len(vocabulary())]


def test_added_tokens(folder):
    count = len(vocabulary())
    added = folder / "added_tokens.json"
    added.write_text(json.dumps({"<tool>": count + 1, "<call>": count}))
    assert read(folder).encode("a<tool><call>") == [vocabulary().index("a"), count + 1, count]
    added.write_text(json.dumps({"<tool>": count + 7}))
    assert f"expected ids that follow the {count} of vocab.txt; found others for <tool>" in refused(folder)
    added.write_text(json.dumps({"<tool>": "x"}))
    assert "added_tokens.json: expected token ids" in refused(folder)


@pytest.mark.parametrize("content, message", [
    ("北京".encode("gbk"), "expected UTF-8; found other bytes at 0"),
    (b"", "expected the tokens [UNK], [CLS] and [SEP], each on a line; [UNK], [CLS], [SEP] not found"),
    (b"[UNK]\n[CLS]\na\n", "[SEP] not found. Is it the vocabulary of a BERT tokenizer?"),
])
def test_files_that_are_no_vocabulary(folder, content, message):
    (folder / "vocab.txt").write_bytes(content)
    assert message in refused(folder)


@pytest.mark.parametrize("settings, message", [
    ({"do_lower_case": "no"}, "do_lower_case: expected true or false; found no"),
    ({"tokenize_chinese_chars": None, "strip_accents": 1},
     "tokenize_chinese_chars: expected true or false; found None; strip_accents: expected true or false; found 1"),
    ({"tokenizer_class": "BertJapaneseTokenizer"}, "expected tokenizer_class BertTokenizer; found BertJapaneseToken"),
    ({"sep_token": "</s>"}, "expected the tokens [UNK], [CLS] and </s>"),
])
def test_settings_that_cannot_be_applied(tmp_path, settings, message):
    assert message in refused(make_folder(tmp_path / "model", settings))


def test_a_class_that_the_model_names(tmp_path):
    folder = make_folder(tmp_path / "model")
    assert "found JiebaTokenizer" in refused(folder, tokenizer_class="JiebaTokenizer")
    assert read(folder, tokenizer_class=None).encode("今")


def test_tokenizer_config_decides_on_case_as_in_transformers(folder, tmp_path):
    read(folder).save(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": False}))
    assert pieces(read(tmp_path / "saved"), "Python") == ["Python"]


def test_any_text_has_tokens(folder):
    ours, draw = read(folder), random.Random(1)
    letters = [c for text in TEXTS for c in text]
    for _ in range(200):
        text = "".join(draw.choices(letters, k=20))
        assert "[CLS]" not in ours.decode(ours.encode(text)) and ours.end(ours.begin(text))[-1] == SEP
