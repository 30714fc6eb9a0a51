"""`evaluate --extractive` and the perplexity of reference answers, against brute force on a small base."""

from __future__ import annotations

import json

import numpy as np
import pytest

import small_run
from inference.test_span_search import log_probabilities
from jittor_lora.cli.main import main
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.inference.extraction import Extractor, ending_tokens
from jittor_lora.inference.span_tree import spans_of
from jittor_lora.session import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("extract")
    small_run.make_base(made / "base")
    small_run.make_squad(made / "dev.json", 5)
    assert main(["evaluate", "--base", str(made / "base"), "--data", str(made / "dev.json"), "--output",
                 str(made / "found"), "--extractive", "--perplexity", "--max-span-words", "4",
                 "--precision", "fp32"]) == 0
    return made


@pytest.fixture(scope="module")
def session(folder):
    return load(str(folder / "base"))


def answer_score(session, context, question, answer, ends):
    """The log-probability of an answer's tokens and of its end, from one pass over the whole text."""
    template = Template()
    prompt = [token for piece in template.prompt_pieces(context, question) for token in session.tokenizer.encode(piece)]
    tokens = session.tokenizer.encode(template.completion_text(answer))
    logs = log_probabilities(session.model, [*prompt, *tokens])[len(prompt) - 1 :]
    return sum(logs[i, token] for i, token in enumerate(tokens)) + np.logaddexp.reduce(logs[len(tokens), ends])


def test_spans_are_those_of_brute_force(folder, session):
    ends = ending_tokens(session.tokenizer, ["\n"], 300)
    assert session.tokenizer.eos_id in ends and len(ends) > 1
    rows = [json.loads(line) for line in (folder / "found" / "spans.jsonl").read_text().splitlines()]
    predictions = json.loads((folder / "found" / "predictions.json").read_text())
    asked = {q.id: (p.context, q.text) for p in load_data(str(folder / "dev.json")).paragraphs for q in p.questions}
    assert predictions == {row["id"]: row["text"] for row in rows} and predictions.keys() == asked.keys()
    for row in rows:
        context, question = asked[row["id"]]
        scores = {span: answer_score(session, context, question, context[slice(*span)], ends)
                  for span in spans_of(context, 4)}
        assert context[row["start"] : row["end"]] == row["text"]
        assert row["log_probability"] == pytest.approx(max(scores.values()), abs=1e-4)
        assert scores[row["start"], row["end"]] == pytest.approx(max(scores.values()), abs=1e-4)
    assert len(set(predictions.values())) > 1


def test_perplexity_of_the_reference_answers(folder, session):
    end = [session.tokenizer.eos_id]
    total = count = 0
    for paragraph in load_data(str(folder / "dev.json")).paragraphs:
        for question in paragraph.questions:
            answer = question.training_answer().text
            total -= answer_score(session, paragraph.context, question.text, answer, end)
            count += len(session.tokenizer.encode(" " + answer)) + 1
    metrics = json.loads((folder / "found" / "metrics.json").read_text())
    assert metrics["answer_loss"] == pytest.approx(total / count, rel=1e-4)
    assert metrics["answer_perplexity"] == pytest.approx(np.exp(total / count), rel=1e-3)


def test_several_questions_about_one_context(session):
    extractor, context = Extractor(session.model, session.tokenizer), "Town 1 has ten houses. Its river is the R1."
    together = extractor.answer(context, ["How many houses?", "Which river?"])
    alone = [extractor.answer(context, [question])[0] for question in ("How many houses?", "Which river?")]
    assert [found[:3] for found in together] == [found[:3] for found in alone]
    empty, = extractor.answer("...", ["Which?"])
    assert empty[:4] == ("", 0, 0, -np.inf)


def test_what_cannot_be_extracted(folder, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    common = ["evaluate", "--base", str(folder / "base"), "--output", str(tmp_path / "out"), "--extractive"]
    assert main([*common, "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert "these prompts have none" in capsys.readouterr().err
    assert main([*common, "--data", str(folder / "dev.json"), "--beams", "4"]) == 2
    assert "has no effect on spans" in capsys.readouterr().err
