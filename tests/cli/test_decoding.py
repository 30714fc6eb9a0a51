"""Beams, constraints and several samples through the command line, and E2E NLG's whole way, on a small base."""

from __future__ import annotations

import json

import pytest

import small_run
from jittor_lora.cli.evaluate import EvaluateOptions
from jittor_lora.cli.generate import GenerateOptions
from jittor_lora.cli.main import main
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from jittor_lora.evaluation.text import E2E_SCORES, text_scores
from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.generator import Generator
from jittor_lora.session import load


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_run.make_base(tmp_path_factory.mktemp("decoding") / "base"))


def generated(base, capsys, *more):
    capsys.readouterr()
    assert main(["generate", "--base", base, "--precision", "fp32", "--prompt", "The town", "--max-new-tokens", "8",
                 *more]) == 0
    return capsys.readouterr().out


def test_beams(base, capsys):
    session = load(base)
    options = GenerateOptions(prompt="The town", beams=4, length_penalty=0.5, no_repeat_ngram=2)
    decoding = options.decoding(8, None)
    assert decoding.beams == Beams(4, 0.5)
    generator = Generator(session.model, session.tokenizer)
    expected, = generator.search(generator.groups([(None, "The town")]), decoding)
    beams = ["--beams", "4", "--length-penalty", "0.5", "--no-repeat-ngram", "2"]
    assert generated(base, capsys, *beams) == expected[0] + "\n"
    rows = [json.loads(line) for line in generated(base, capsys, *beams, "--samples", "3").splitlines()]
    assert [row["continuation"] for row in rows] == expected[:3]
    assert generated(base, capsys) != expected[0] + "\n"


def test_samples_are_drawn_each_for_itself(base, capsys, tmp_path):
    draw = ["--temperature", "1.5", "--min-p", "0.01", "--samples", "4", "--seed", "3"]
    rows = [json.loads(line)["continuation"] for line in generated(base, capsys, *draw).splitlines()]
    assert len(set(rows)) == 4
    assert rows == [json.loads(line)["continuation"] for line in generated(base, capsys, *draw).splitlines()]
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "The town"}\n{"context": "Town 1.", "question": "Which?"}\n')
    assert main(["generate", "--base", base, "--precision", "fp32", "--file", str(file), "--max-new-tokens", "8",
                 *draw]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["continuations"] == rows and len(second["continuations"]) == 4


@pytest.mark.parametrize("options, wrong, expected", [
    (GenerateOptions, {"length_penalty": 2}, "--beams|without beams"), (GenerateOptions, {"min_p": 0.1}, "temperature"),
    (GenerateOptions, {"beams": 2, "temperature": 1}, "does not sample"),
    (GenerateOptions, {"samples": 2}, "several continuations need"),
    (GenerateOptions, {"samples": 5, "beams": 4}, "as many"), (EvaluateOptions, {"early_stopping": "yes"}, "beams"),
    (EvaluateOptions, {"extractive": True, "no_repeat_ngram": 3}, "no effect on spans"),
    (EvaluateOptions, {"max_span_words": 3}, "without extractive"),
])
def test_settings_without_effect_are_refused(options, wrong, expected):
    with pytest.raises(UserError, match=expected):
        options(**({"prompt": "x"} if options is GenerateOptions else {}), **wrong)


def test_e2e_by_its_recipe(base, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--config", "e2e-gpt2", "--base", base, "--data", "e2e-train", "--output", str(run),
                 "--max-train", "60", "--max-steps", "3", "--warmup-steps", "1"]) == 0
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 32)
    assert main(["evaluate", "--adapter", str(run), "--data", "e2e-dev", "--limit", "20", "--output",
                 str(tmp_path / "out"), "--max-new-tokens", "10", "--beams", "10", "--length-penalty", "0.8",
                 "--no-repeat-ngram", "4",
                 "--batch-size", "40", "--perplexity"]) == 0
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    references = load_data("e2e-dev", purpose="evaluation").subset(20, 42).references()
    assert predictions.keys() == references.keys() and len(predictions) > 1
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["answer_perplexity"] > 1
    scores = text_scores(references, predictions, 42)
    assert set(E2E_SCORES) <= scores.keys()
    assert metrics["text_scores_interval"]["resamples"] == 1_000
    assert metrics["text_scores"] == json.loads(json.dumps({name: vars(score) for name, score in scores.items()}))
