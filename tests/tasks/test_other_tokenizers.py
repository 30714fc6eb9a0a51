"""A base with a tokenizer like Llama-2's: what is read, where it ends, and what is printed."""

from __future__ import annotations

import json

import pytest

import model_files
import small_run
import tiny
from jittor_lora.cli.main import main
from jittor_lora.data.examples import training_groups
from jittor_lora.data.sources import load_data
from jittor_lora.data.stream import build_stream
from jittor_lora.data.template import Template
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.generate import generate
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.session import load
from tokenizer_kinds import make, save

LLAMA = {**model_files.LLAMA, "vocab_size": 400, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2}
PROMPT = "Context: the town"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(its folder, the tokens that it writes after PROMPT, greedily)."""
    folder = tmp_path_factory.mktemp("llama") / "base"
    model_files.make_folder(folder, LLAMA, tiny.tensors(LLAMA))
    save(folder, make("llama", "begin"))
    return folder, written(folder)


def written(folder):
    session = load(str(folder), precision="fp32")
    ((prefix, branches),) = Generator(session.model, session.tokenizer).groups([(None, PROMPT)])
    return generate(session.model, prefix, branches, 6)[0]


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("beams", [None, Beams(1)])
def test_every_end_of_text_ends_it(base, tmp_path, where, beams):
    folder, tokens = base
    at = next(i for i in range(1, 6) if tokens[i] not in tokens[:i])
    ends = {"eos_token_id": [2, tokens[at]]}
    copy = tmp_path / "base"
    model_files.make_folder(copy, {**LLAMA, **(ends if where == "config.json" else {})}, tiny.tensors(LLAMA))
    save(copy, make("llama", "begin"))
    if where == "generation_config.json":
        (copy / where).write_text(json.dumps(ends))
    session = load(str(copy), precision="fp32")
    assert session.tokenizer.eos_id == 2
    found = Generator(session.model, session.tokenizer).continue_text(PROMPT, Decoding(6, beams=beams))
    prompt = session.tokenizer.encode(PROMPT)
    whole = session.tokenizer.decode([*prompt, *tokens[:at]])
    assert found == whole[len(session.tokenizer.decode(prompt)) :]


def test_what_is_trained_on_is_one_text(base, tmp_path):
    tokenizer = load(str(base[0])).tokenizer
    data = load_data(str(small_run.make_squad(tmp_path / "data.json", 3)))
    groups, report = training_groups(data, tokenizer, Template(), 256)
    assert [len(group.branches) for group in groups] == [2, 2, 2] and report.kept == 6
    for paragraph, group in zip(data.paragraphs, groups):
        assert group.prefix[0] == 1 and len(group.prefix) > 30
        for question, branch in zip(paragraph.questions, group.branches):
            whole = Template().whole(paragraph.context, question.text, question.answers[0].text)
            assert group.prefix + branch.prompt + branch.completion == tokenizer.begin(whole) + [2]
    assert build_stream(groups).ids == [q.id for p in data.paragraphs for q in p.questions]


def test_a_context_that_is_cut_keeps_its_beginning_of_text(base, tmp_path):
    tokenizer = load(str(base[0])).tokenizer
    data = load_data(str(small_run.make_squad(tmp_path / "data.json", 1)))
    groups, report = training_groups(data, tokenizer, Template(), 62)
    assert report.windowed and all(group.prefix[0] == 1 for group in groups)
    assert all(len(g.prefix + b.prompt + b.completion) <= 62 for g in groups for b in g.branches)
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"prompt": "the town has ten houses " * 5, "completion": " ten"}))
    groups, report = training_groups(load_data(str(plain)), tokenizer, Template(), 20)
    assert report.cut and groups[0].prefix[0] == 1
    assert len(groups[0].prefix + groups[0].branches[0].prompt + groups[0].branches[0].completion) == 20


@pytest.mark.parametrize("meaning, count", [("text", 0), ("token", 2)])
def test_special_tokens_in_data(base, tmp_path, capsys, meaning, count):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "[CLS]a[CLS]", "completion": " b"}))
    assert main(["inspect", "--base", str(base[0]), "--data", str(data), "--special-tokens", meaning]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 examples spell out special tokens (counts: [CLS] 2)" in out
    assert ("read as plain text" in out) == (meaning == "text")
    tokenizer = load(str(base[0])).tokenizer
    tokenizer.special_tokens = meaning
    assert tokenizer.encode("[CLS]a[CLS]").count(3) == count


def test_generate_says_what_it_reads_as_text_and_what_it_does_not_apply(base, tmp_path, capsys):
    copy = tmp_path / "base"
    model_files.make_folder(copy, LLAMA, tiny.tensors(LLAMA))
    save(copy, make("llama", "begin"))
    (copy / "generation_config.json").write_text(json.dumps({
        "do_sample": True, "temperature": 0.6, "top_k": 50, "repetition_penalty": 1.1, "transformers_version": "5"}))
    arguments = ["generate", "--base", str(copy), "--max-new-tokens", "2", "--precision", "fp32"]
    assert main([*arguments, "--prompt", "<s> the town"]) == 0
    err = capsys.readouterr().err
    assert "1 of 1 prompts spell out special tokens (counts: <s> 1). They are read as plain text" in err
    assert "asks for do_sample True, temperature 0.6, repetition_penalty 1.1, which is not applied" in err
    assert main([*arguments, "--prompt", "<s> the town", "--special-tokens", "token"]) == 0
    assert "They are read as the tokens" in capsys.readouterr().err
