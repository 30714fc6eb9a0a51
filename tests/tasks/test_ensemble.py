"""`--ensemble`: adapters that answer a data set together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.inference.extraction import Extractor
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.session import load


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with base, data, and runs that differ in their seed, one of them in its template too."""
    folder = small_run.make_files(tmp_path_factory.mktemp("ensemble"), 12, 4)
    other = ("--template", "{context}\nQ: {question}\nA:")
    smooth = ("--label-smoothing", "0.2")
    for name, more in (("one", ()), ("two", ("--seed", "2")), ("other", other), ("smooth", smooth)):
        assert main(["train", "--base", str(folder / "base"), "--data", str(folder / "train.json"), "--output",
                     str(folder / name), "--max-steps", "12", "--learning-rate", "0.02", *more]) == 0
    return folder


def evaluate(runs, output: Path, *arguments: str) -> dict[str, str]:
    assert main(["evaluate", "--data", str(runs / "dev.json"), "--adapter", str(runs / "one"), "--output", str(output),
                 "--precision", "fp32", *arguments]) == 0
    return json.loads((output / "predictions.json").read_text())


def questions_of(runs):
    for paragraph in load_data(str(runs / "dev.json"), "dev", "evaluation").paragraphs:
        for question in paragraph.questions:
            yield question.id, paragraph.context, question.text


def test_answers_are_those_of_the_adapters_together(runs, tmp_path, capsys):
    both = ("--ensemble", str(runs / "two"))
    generated = evaluate(runs, tmp_path / "generated", *both, "--with-base")
    err = capsys.readouterr().err
    assert f"Adapters, together: {runs / 'one/adapter'}, {runs / 'two/adapter'}\n" in err
    spans = evaluate(runs, tmp_path / "spans", *both, "--extractive")
    session = load(str(runs / "base"), runs / "one/adapter")
    session.load_adapter(runs / "two/adapter", "two")
    together = ("default", "two")
    generator = Generator(session.model, session.tokenizer, Template(), ensemble=together)
    extractor = Extractor(session.model, session.tokenizer, Template(), together)
    asked = list(questions_of(runs))
    decoding = Decoding(32, stop="\n")
    assert generated == {name: generator.answer(context, [question], decoding)[0].strip()
                         for name, context, question in asked}
    assert spans == {name: extractor.answer(context, [question])[0].text for name, context, question in asked}
    assert generated != evaluate(runs, tmp_path / "alone")
    assert json.loads((tmp_path / "generated/base/predictions.json").read_text()) == _base_alone(runs, tmp_path)

    name, context, question = asked[0]
    capsys.readouterr()
    assert main(["generate", "--adapter", str(runs / "one"), *both, "--context", context, "--question", question,
                 "--max-new-tokens", "32", "--precision", "fp32"]) == 0
    assert capsys.readouterr().out.strip() == generated[name]


def test_the_label_smoothing_of_an_ensemble_is_the_mean(runs, tmp_path):
    for others, expected in (((), 0.0), (("smooth",), 0.1), (("two", "smooth"), 0.2 / 3)):
        folder, together = tmp_path / "-".join(("spans", *others)), [str(runs / other) for other in others]
        evaluate(runs, folder, *(["--ensemble", *together] if others else []), "--extractive")
        assert json.loads((folder / "metrics.json").read_text())["label_smoothing"] == pytest.approx(expected)


def _base_alone(runs, tmp_path) -> dict[str, str]:
    assert main(["evaluate", "--data", str(runs / "dev.json"), "--base", str(runs / "base"), "--output",
                 str(tmp_path / "base"), "--precision", "fp32"]) == 0
    return json.loads((tmp_path / "base/predictions.json").read_text())


def test_all_that_is_wrong_is_said(runs, tmp_path, capsys):
    data = ["evaluate", "--data", str(runs / "dev.json"), "--output", str(tmp_path / "out")]
    one, two = ["--adapter", str(runs / "one")], ["--ensemble", str(runs / "two")]

    def error(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "give --adapter DIR too" in error(*data, *two)
    assert "--perplexity" in error(*data, *one, *two, "--perplexity")
    assert "--no-adapter" in error("generate", *one, *two, "--no-adapter", "--prompt", "a")
    assert f"--ensemble {runs / 'none'}: expected an adapter folder" in error(*data, *one, *two, str(runs / "none"))
    found = error(*data, *one, *two, str(runs / "other"))
    assert f"{runs / 'other/adapter'}: another template\n" in found and str(runs / "two") not in found
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_prompts_are_unknown_reads_those_of_the_others(runs, tmp_path):
    """As one from PEFT."""
    bare = Path(shutil.copytree(runs / "two/adapter", tmp_path / "bare"))
    (bare / "prompting.json").unlink()
    expected = evaluate(runs, tmp_path / "with", "--ensemble", str(runs / "two"))
    assert evaluate(runs, tmp_path / "without", "--ensemble", str(bare)) == expected
