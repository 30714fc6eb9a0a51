"""An adapter for a Chinese GPT-2 with vocab.txt: trained, stored, used, merged."""

from __future__ import annotations

import json

import pytest

import word_piece_files
from jittor_lora.cli.main import main
from jittor_lora.data.examples import training_groups
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.session import load

EXAMPLES = [("问：天气怎么样？答：", "今天天气很好。"), ("问：去哪里？答：", "北京大学图书馆。"),
            ("问：学什么？答：", "机器学习 and Python。")]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chinese")
    word_piece_files.make_folder(folder / "base", {"do_lower_case": False})
    lines = [json.dumps({"prompt": prompt, "completion": answer}, ensure_ascii=False) for prompt, answer in EXAMPLES]
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def adapter(work):
    assert main(["train", "--base", str(work / "base"), "--data", str(work / "data.jsonl"), "--output",
                 str(work / "run"), "--max-steps", "150", "--batch-size", "3", "--learning-rate", "2e-2",
                 "--lora-dropout", "0", "--target-modules", "all-linear", "--precision", "fp32"]) == 0
    return work / "run" / "adapter"


def test_what_is_trained_on(work):
    tokenizer = load(str(work / "base")).tokenizer
    groups, _ = training_groups(load_data(str(work / "data.jsonl")), tokenizer, Template(), 256)
    for (prompt, answer), group in zip(EXAMPLES, groups):
        (branch,) = group.branches
        assert group.prefix + branch.prompt == tokenizer.begin(prompt) and group.prefix[0] == 2
        assert branch.completion == tokenizer.encode(answer) + [3]


def test_the_adapter_answers_in_chinese_and_stops(work, adapter, capsys):
    capsys.readouterr()
    for prompt, answer in EXAMPLES:
        assert main(["generate", "--base", str(work / "base"), "--adapter", str(adapter), "--prompt", prompt,
                     "--max-new-tokens", "40", "--precision", "fp32"]) == 0
        out, err = capsys.readouterr()
        assert out.strip() == answer.replace(" ", "", 1) and "[SEP] ends each text" in err


def test_a_merged_model_needs_no_choice(work, adapter, capsys):
    assert main(["merge", "--base", str(work / "base"), "--adapter", str(adapter), "--output",
                 str(work / "merged")]) == 0
    capsys.readouterr()
    assert main(["generate", "--base", str(work / "merged"), "--prompt", EXAMPLES[0][0], "--max-new-tokens", "40",
                 "--precision", "fp32"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == EXAMPLES[0][1] and "ends each text" not in err


def test_inspect_shows_the_text(work, capsys):
    assert main(["inspect", "--base", str(work / "base"), "--data", str(work / "data.jsonl"), "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "scored in every example" in out and "[CLS]" in out and "[[天]][[气]]" in out
