"""Ids of whole texts, prompts and trained examples are those of the tokenizers library, for every kind of tokenizer."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from jittor_lora.data.encoding import Encoder
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.formats.tokenizer import read_tokenizer
from jittor_lora.model.config import ModelConfig
from tokenizer_kinds import AROUND, KINDS, TEXTS, make, save

TEXT = st.sampled_from(TEXTS) | st.text(st.sampled_from(" \n\t▁aZtheén中0:?.,'\u0301\u3000🎉"), max_size=12)
TEMPLATES = [Template(), Template("{context} {question}\n{answer}"), Template("{question}{context}={answer}"),
             Template("<s> {context}{question} </s>{answer}")]


@pytest.fixture(scope="module", params=[*((kind, "begin and end") for kind in KINDS),
                                        *(("llama", around) for around in AROUND),
                                        *(("byte-level", around) for around in AROUND)], ids=" / ".join)
def pair(request, tmp_path_factory):
    """(ours, the library's own)."""
    folder = save(tmp_path_factory.mktemp("tokenizer"), make(*request.param))
    theirs = Backend.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return read_tokenizer(folder), theirs


def ids(theirs, text: str, *, whole: bool) -> list[int]:
    """The library's ids of a text, without the closing tokens unless it is whole."""
    found, plain = theirs.encode(text), theirs.encode(text, add_special_tokens=False).ids
    if whole:
        return found.ids if found.ids[-1:] == [2] else found.ids + [2]
    return found.ids[: _opening(theirs) + len(plain)]


def _opening(theirs) -> int:
    """Number of ids that the post-processor puts before a text."""
    word = theirs.encode("town", add_special_tokens=False).ids
    whole = theirs.encode("town").ids
    return next(i for i in range(len(whole)) if whole[i : i + len(word)] == word)


@given(text=TEXT)
@settings(max_examples=40)
@example(text="")
def test_texts(pair, text):
    ours, theirs = pair
    assert ours.begin(text) == ids(theirs, text, whole=False)
    assert ours.end(ours.begin(text)) == ids(theirs, text, whole=True)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.text)
@given(context=TEXT, questions=st.lists(TEXT, min_size=1, max_size=3), answer=TEXT)
@settings(max_examples=12)
def test_prompts_and_examples(pair, template, context, questions, answer):
    ours, theirs = pair
    encoder = Encoder(ours, template)
    if ours.cuts_before_space:  # pieces alone: split at word ends, unless a text starts or ends in whitespace
        questions, context = [f"q{question.strip()}" for question in questions], context.strip()
        if template.text != TEMPLATES[0].text:
            return
    prompts = ["".join(template.prompt_pieces(context, question)) for question in questions]
    prefix, branches = encoder.prompts(context, questions)
    assert [prefix + branch for branch in branches] == [ids(theirs, prompt, whole=False) for prompt in prompts]
    for question, prompt in zip(questions, prompts):
        found = encoder.example(context, question, answer)
        text = prompt + template.completion_text(answer)
        assert found.prefix + found.prompt + found.completion == ids(theirs, text, whole=True)
        if not found.within_token:
            assert found.prefix + found.prompt == ids(theirs, prompt, whole=False)


@given(prompt=TEXT.filter(bool), completions=st.lists(TEXT, min_size=1, max_size=3))
@settings(max_examples=25)
def test_plain_prompts(pair, prompt, completions):
    ours, theirs = pair
    encoder = Encoder(ours)
    first, last = encoder.plain_prompt(prompt)
    assert first + last == ids(theirs, prompt, whole=False) and len(last) == bool(first + last)
    for text, (before, completion) in zip(completions, encoder.completions(prompt, first + last, completions)):
        if ours.cuts_before_space:
            assert before == first + last
            assert completion == ours.encode(text) + ours.ending
        else:
            assert before + completion == ids(theirs, prompt + text, whole=True)


def test_questions_share_what_their_tokens_have_in_common(pair):
    ours, _ = pair
    context = "the town has ten houses. " * 4
    prefix, branches = Encoder(ours).prompts(context, ["how many?", "what?"])
    assert len(prefix) > max(map(len, branches))


@pytest.mark.parametrize("kind", KINDS)
def test_spans_have_the_tokens_they_have_as_answers(kind, tmp_path):
    ours = read_tokenizer(save(tmp_path, make(kind, "begin")))
    encoder, answers = Encoder(ours), ["ten", "the town", "R1.", "2 rooms)", "北京"]
    whole = [encoder.example("the old town", "how many?", answer) for answer in answers]
    assert encoder.answers(answers) == [None if found.within_token else found.completion[:-1] for found in whole]
    # These two have multi-word tokens.
    assert kind in ("llama", "metaspace, first") or not any(found.within_token for found in whole)


def test_the_tokenizer_file_says_which_tokens_surround_a_text(tmp_path):
    """Not the configuration, which transformers ignores beside a tokenizer.json."""
    ours = read_tokenizer(save(tmp_path, make("llama", "begin and end"), add_bos_token=False, add_eos_token=True))
    assert (ours.opening, ours.ending) == ([1], [2])
    (note,) = ours.notes
    assert "add_bos_token: false, but tokenizer.json puts bos_token before a text. tokenizer.json applies" in note
    assert read_tokenizer(save(tmp_path, make("llama", "begin"), add_bos_token=True, add_eos_token=False)).notes == []


@pytest.mark.parametrize("around, config", [("nothing", {"add_bos_token": True}), ("begin", {"add_eos_token": True}),
                                            ("begin", {"add_bos_token": False})])
def test_settings_on_which_versions_of_transformers_differ_are_refused(tmp_path, around, config):
    folder = save(tmp_path, make("llama", around), tokenizer_class="LlamaTokenizerFast", **config)
    assert "Versions of transformers differ" in refused(folder) and next(iter(config)) in refused(folder)


@pytest.mark.parametrize(
    ("config", "opening"),
    [
        ({"add_bos_token": True}, [1]),
        ({"add_bos_token": True, "bos_token": {"content": "[CLS]"}}, [3]),
        ({"add_bos_token": False}, []),
        ({}, []),
    ],
)
@pytest.mark.parametrize("eos", [False, True])
def test_without_a_tokenizer_file_the_configuration_says_it(tmp_path, config, opening, eos):
    vocabulary(tmp_path, add_eos_token=eos, **config)
    ours = read_tokenizer(tmp_path)
    assert (ours.opening, ours.ending) == (opening, [2])
    ours.save(tmp_path / "saved")
    again = read_tokenizer(tmp_path / "saved")
    assert (again.opening, again.ending, again.notes) == (opening, [2], [])


def vocabulary(folder, **config):
    """GPT-2's older files."""
    content = json.loads(save(folder, make("byte-level"), **config).joinpath("tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in content["model"]["merges"]))


def test_an_unnamed_end_of_text_is_the_token_that_closes_texts(tmp_path):
    folder = save(tmp_path, make("WordPiece", "bert"), eos_token=None)
    ours = read_tokenizer(folder)
    assert (ours.eos_id, ours.ending, ours.end_ids) == (4, [4], {4})


def refused(folder, model=None) -> str:
    with pytest.raises(UserError) as caught:
        read_tokenizer(folder, model)
    return str(caught.value)


@pytest.mark.parametrize("token, why", [(None, "it names none"), ("<x>", "the vocabulary lacks '<x>'")])
def test_a_missing_token_around_texts_is_refused(tmp_path, token, why):
    vocabulary(tmp_path, add_bos_token=True, bos_token=token)
    assert "add_bos_token: true; expected a bos_token" in refused(tmp_path) and why in refused(tmp_path)


@pytest.mark.parametrize(
    ("kind", "config", "spaced"),
    [
        ("byte-level", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, True),
        ("byte-level with a space before", {"tokenizer_class": "GPT2TokenizerFast"}, False),
        ("byte-level with a space before", {}, True),
        ("byte-level, Llama-3's words", {"tokenizer_class": "LlamaTokenizerFast"}, False),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": True}, True),
        ("llama", {"add_prefix_space": False}, True),  # of tokenizer.json; no version of transformers heeds the other
        ("metaspace, never", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, False),
    ],
)
def test_a_space_before_the_text(tmp_path, kind, config, spaced):
    ours = read_tokenizer(save(tmp_path, make(kind), **config))
    ids = ours.encode("the")
    assert (ours.encode("x the")[-len(ids) :] == ids) == spaced


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("byte-level", {"add_prefix_space": True}),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
        ("metaspace, never", {"tokenizer_class": "LlamaTokenizer"}),
    ],
)
def test_a_leading_space_on_which_versions_of_transformers_differ_is_refused(tmp_path, kind, config):
    message = refused(save(tmp_path, make(kind), **config))
    assert "add_prefix_space" in message and "Versions of transformers differ" in message


def test_gpt2s_class_is_that_of_a_gpt2_model(tmp_path):
    folder = save(tmp_path, make("byte-level with a space before"), tokenizer_class=None)
    gpt2 = ModelConfig.from_hugging_face({"model_type": "gpt2", "vocab_size": 500}, "config.json")
    assert len(read_tokenizer(folder).encode("the")) == len(read_tokenizer(folder, gpt2).encode(" the"))
    assert read_tokenizer(folder).encode("the") != read_tokenizer(folder, gpt2).encode("the")


def test_merge_dropout_is_refused(tmp_path):
    folder = save(tmp_path, make("byte-level"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "model.dropout: expected null" in refused(folder)


def test_two_steps_around_a_text_are_refused(tmp_path):
    made = make("llama")
    made.post_processor = processors.Sequence([AROUND["begin"](), AROUND["bert"]()])
    assert "expected one step that puts tokens around a text; found TemplateProcessing, BertProcessing" in refused(
        save(tmp_path, made))


def test_tokens_that_the_configuration_adds(tmp_path):
    made = make("byte-level")
    count = made.get_vocab_size()
    added = {str(count): {"content": "<tool>", "special": False}, "1": {"content": "<s>", "special": True}}
    ours = read_tokenizer(save(tmp_path, made, added_tokens_decoder=added))
    assert ours.encode("<tool>") == [count]
    added = {str(count + 5): {"content": "<tool>"}}
    assert f"has id {count}, and {count + 5} in" in refused(save(tmp_path, made, added_tokens_decoder=added))


def test_a_token_without_an_embedding_is_refused_where_a_text_uses_it(tmp_path):
    made = make("byte-level")
    count = made.get_vocab_size()
    made.add_special_tokens(["[PAD]"])
    made.add_tokens(["<tool>"])
    ours = read_tokenizer(save(tmp_path, made))
    ours.fit(ModelConfig.from_hugging_face({"model_type": "gpt2", "vocab_size": count}, "config.json"))
    assert ours.encode("a [PAD] b")
    with pytest.raises(UserError, match=rf"'<tool>' \({count + 1}\).*has {count} rows.*resize_token_embeddings"):
        ours.encode("a <tool> b")


def test_every_end_of_text_is_known(tmp_path):
    ours = read_tokenizer(save(tmp_path, make("llama")))
    ours.fit(ModelConfig.from_hugging_face({"model_type": "gpt2", "vocab_size": 500}, "config.json"), (7, 9))
    assert (ours.eos_id, ours.end_ids) == (2, {2, 7, 9})
