from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from jittor_lora.errors import UserError
from jittor_lora.formats.byte_level import END_OF_TEXT, gpt2_tokenizer
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_tokenizer import gguf_tokenizer
from jittor_lora.formats.tokenizer import GPT2_SHIPPED, Tokenizer, read_tokenizer
from jittor_lora.model.config import ModelConfig
from model_files import make_bpe, make_gguf, make_tensors

TEXTS = ["The answer is 42.", "", " ", "  two  spaces\n\n\tand tab ", "naïve café, 北京 🎉🎉", "f(x):\n    return x"]
HOSTILE = f"before{END_OF_TEXT}after {END_OF_TEXT}"


@pytest.fixture
def bpe() -> Backend:
    return make_bpe()


@pytest.fixture
def json_folder(tmp_path, bpe):
    bpe.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def vocab_folder(tmp_path, bpe):
    content = json.loads(bpe.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps({**content["vocab"], END_OF_TEXT: 299}))
    merges = "\n".join(" ".join(merge) for merge in content["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return tmp_path


def model(**changed) -> ModelConfig:
    return ModelConfig.from_hugging_face({"model_type": "gpt2", "vocab_size": 300, **changed}, "config.json")


def refused(folder, config: ModelConfig | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_tokenizer(folder, config)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def change(path, **changed) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize("folder", ["json_folder", "vocab_folder"])
def test_ids_are_the_librarys_and_come_back_as_text(request, folder, bpe):
    tokenizer = read_tokenizer(request.getfixturevalue(folder))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (300, 299)
    for text in TEXTS:
        assert tokenizer.encode(text) == bpe.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("folder", ["json_folder", "vocab_folder"])
def test_text_never_becomes_a_special_token(request, folder, bpe):
    tokenizer = read_tokenizer(request.getfixturevalue(folder))
    assert 299 in bpe.encode(HOSTILE).ids  # the library's default
    assert 299 not in tokenizer.encode(HOSTILE)
    assert tokenizer.decode(tokenizer.encode(HOSTILE)) == HOSTILE


PIECES = st.sampled_from([END_OF_TEXT, "<|", "endoftext", "|>", " ", "\n", "a", "北", "🎉", "1"])


@given(st.lists(PIECES | st.characters(exclude_categories=["Cs"]), max_size=12))
def test_any_text_comes_back_without_the_end_of_text(pieces):
    tokenizer = SHIPPED
    ids = tokenizer.encode("".join(pieces))
    assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == "".join(pieces)


SHIPPED = Tokenizer(gpt2_tokenizer(), {}, GPT2_SHIPPED, 50256)


def test_a_token_that_only_another_file_calls_special_is_special(json_folder):
    content = json.loads((json_folder / "tokenizer.json").read_text())
    content["added_tokens"][0]["special"] = False
    (json_folder / "tokenizer.json").write_text(json.dumps(content))
    assert 299 in read_tokenizer(json_folder).encode(HOSTILE)
    assert 299 not in read_tokenizer(json_folder, model(eos_token_id=299)).encode(HOSTILE)
    for value in (END_OF_TEXT, {"content": END_OF_TEXT, "lstrip": False}):
        (json_folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": value}))
        assert 299 not in read_tokenizer(json_folder).encode(HOSTILE)
    (json_folder / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": [END_OF_TEXT]}))
    assert 299 not in read_tokenizer(json_folder).encode(HOSTILE)


def test_nothing_is_truncated_padded_or_added(json_folder, bpe):
    bpe.enable_truncation(3)
    bpe.enable_padding(length=50)
    bpe.save(str(json_folder / "tokenizer.json"))
    content = json.loads((json_folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [299], "tokens": [END_OF_TEXT]}}}
    (json_folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = read_tokenizer(json_folder)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_invalid_unicode_is_refused(json_folder):
    with pytest.raises(UserError, match=r"a\\\\udc80b"):
        read_tokenizer(json_folder).encode("a\udc80b")


def test_words_have_the_space_before_them():
    assert [SHIPPED.decode([token]) for token in SHIPPED.encode(" the Norman 中")] == [" the", " Norman", " ", "中"]


def test_end_of_text(json_folder, bpe):
    first = bpe.encode("T").ids[0]
    assert read_tokenizer(json_folder).eos_id == 299
    assert read_tokenizer(json_folder, model(eos_token_id=7)).eos_id == 7
    (json_folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "T"}}))
    assert read_tokenizer(json_folder, model(eos_token_id=7)).eos_id == first
    (json_folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a token that is not there"}))
    assert "lacks eos_token" in refused(json_folder)


def test_no_end_of_text(json_folder):
    content = json.loads((json_folder / "tokenizer.json").read_text())
    (json_folder / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": []}))
    assert read_tokenizer(json_folder).eos_id is None


def test_tokens_added_to_an_old_vocabulary(vocab_folder):
    (vocab_folder / "added_tokens.json").write_text(json.dumps({"<two>": 301, "<one>": 300}))
    tokenizer = read_tokenizer(vocab_folder)
    assert tokenizer.encode("<one><two>") == [300, 301] and tokenizer.vocab_size == 302
    (vocab_folder / "added_tokens.json").write_text(json.dumps({"<one>": 305}))
    assert "expected the ids 0 to 300" in refused(vocab_folder)


def test_a_space_before_the_text_if_the_configuration_says_so(vocab_folder):
    plain = read_tokenizer(vocab_folder).encode(" The")
    (vocab_folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert read_tokenizer(vocab_folder).encode("The") == plain


def test_gpt2_without_a_tokenizer_has_the_shipped_one(tmp_path):
    tokenizer = read_tokenizer(tmp_path, model(vocab_size=50257))
    assert tokenizer.origin == GPT2_SHIPPED and tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]
    assert "found nothing" in refused(tmp_path, model(vocab_size=50258))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{}"}, "expected tokenizer.json, vocab.json and merges.txt, or vocab.txt; found config.json"),
        ({"tokenizer.model": "[PAD]"}, "convert tokenizer.model"),
        ({"tokenizer.json": "{"}, "expected JSON"),
        ({"tokenizer.json": "{}"}, "not a tokenizer that the tokenizers library"),
        ({"tokenizer.json": '{"added_tokens": [3]}'}, "not a tokenizer that the tokenizers library"),
        ({"vocab.json": '{"a": 0, "b": 2}', "merges.txt": ""}, "expected the ids 0 to 1, each once"),
        ({"vocab.json": '{"a": "x"}', "merges.txt": ""}, "expected the ids 0 to 0"),
        ({"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "a b\n"}, "the vocabulary lacks 'ab'"),
        ({"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "a b c\n"}, "line 1: expected two tokens"),
    ],
)
def test_folders_without_a_usable_tokenizer(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert message in refused(tmp_path)


def test_vocabulary_larger_than_the_embedding():
    shipped = Tokenizer(gpt2_tokenizer(), {}, GPT2_SHIPPED, 50256)
    shipped.fit(model(vocab_size=50257))
    shipped.fit(model(vocab_size=50304))  # padded to a round number
    with pytest.raises(UserError, match="50257 tokens, the model's embedding only 50256 rows"):
        shipped.fit(model(vocab_size=50256))


@pytest.mark.parametrize("folder", ["json_folder", "vocab_folder"])
def test_saving_keeps_the_ids(request, folder, tmp_path):
    tokenizer = read_tokenizer(request.getfixturevalue(folder))
    tokenizer.save(tmp_path / "saved")
    again = read_tokenizer(tmp_path / "saved")
    assert again.eos_id == 299 and again.config == tokenizer.config
    assert [again.encode(text) for text in [*TEXTS, HOSTILE]] == [tokenizer.encode(text) for text in [*TEXTS, HOSTILE]]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def gguf(tmp_path):
    def write(**options) -> GgufFile:
        make_gguf(tmp_path / "model.gguf", GGUF_MODEL, make_tensors(GGUF_MODEL), **options)
        return GgufFile(tmp_path / "model.gguf")

    return write


GGUF_MODEL = {"model_type": "gpt2", "vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 6,
              "n_inner": 64}


def test_gguf_metadata_gives_the_same_tokenizer(gguf, bpe, tmp_path):
    tokenizer = gguf_tokenizer(gguf(changed={"tokenizer.chat_template": "{{ messages }}"}))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (300, 299)
    for text in TEXTS:
        assert tokenizer.encode(text) == bpe.encode(text).ids
    assert 299 not in tokenizer.encode(HOSTILE)
    tokenizer.save(tmp_path)
    assert read_tokenizer(tmp_path).encode(HOSTILE) == tokenizer.encode(HOSTILE)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


def test_smollm_splits_off_each_digit_first(gguf):
    tokenizer = gguf_tokenizer(gguf(pre="smollm"))
    shown = [tokenizer.decode([token]) for token in tokenizer.encode("a  12 3")]
    assert shown == ["a", "  ", "1", "2", " ", "3"]  # with GPT-2's splitting, the run of spaces is not one token


def test_user_defined_gguf_tokens_are_matched_whole(gguf):
    metadata = gguf().metadata
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    tokens[298] = "<think>"
    changed = {"tokens": tokens, "merges": merges[:-1], "token_type": [1] * 298 + [4, 3]}
    tokenizer = gguf_tokenizer(gguf(changed={f"tokenizer.ggml.{key}": value for key, value in changed.items()}))
    assert tokenizer.encode("x<think>y")[1:-1] == [298]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "expected llama, or gpt2 with one of"),
        ({"tokenizer.ggml.pre": "tekken"}, "found gpt2 with tekken"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "expected no token twice; found 1 repeated"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens: expected a list of texts; found NoneType"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens: expected a list of texts"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "token_type: expected 300 numbers"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "line 1: expected two tokens"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "the vocabulary lacks 'zz'"),
        ({"tokenizer.ggml.eos_token_id": 300}, "eos_token_id: expected an id below 300; found 300"),
    ],
)
def test_inconsistent_gguf_metadata_is_refused(gguf, changed, message):
    with pytest.raises(UserError) as caught:
        gguf_tokenizer(gguf(changed=changed))
    assert message in str(caught.value)
