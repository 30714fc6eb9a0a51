"""`evaluate --extractive` and the perplexity of reference answers, against brute force on a small base."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import model_files
import small_run
import tiny
from inference.test_span_search import log_probabilities
from jittor_lora.cli.main import main
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.evaluation.squad import f1
from jittor_lora.inference.extraction import Candidates, Extract, Extractor, ending_tokens, most_expected
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.inference.sampling import Sampling
from jittor_lora.inference.span_tree import spans_of
from jittor_lora.session import load
from jittor_lora.tasks import evaluate as task
from jittor_lora.tasks.answering import Answering


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("extract")
    small_run.make_base(made / "base")
    flatter = {name: array * np.float32(0.25 if "wte" in name else 1.0)  # so that several spans are probable
               for name, array in tiny.tensors(small_run.GPT2).items()}
    model_files.make_folder(made / "base", small_run.GPT2, flatter)
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


def test_the_highest_expected_f1_is_that_of_brute_force(folder, session):
    """Over the likeliest spans, of all that are more than a hundredth as probable as the likeliest."""
    for count, temperature in ((2, 1.0), (20, 2.0)):
        target = folder / f"f1-{count}"
        assert main(["evaluate", "--base", str(folder / "base"), "--data", str(folder / "dev.json"), "--output",
                     str(target), "--extractive", "--aim", "f1", "--candidates", str(count), "--max-span-words", "4",
                     "--precision", "fp32", *(["--span-temperature", "1"] if temperature == 1.0 else [])]) == 0
        ends = ending_tokens(session.tokenizer, ["\n"], 300)
        rows = {row["id"]: row for row in map(json.loads, (target / "spans.jsonl").read_text().splitlines())}
        predictions = json.loads((target / "predictions.json").read_text())
        expected = []
        for paragraph in load_data(str(folder / "dev.json")).paragraphs:
            for question in paragraph.questions:
                scores = {span: answer_score(session, paragraph.context, question.text, paragraph.context[slice(*span)],
                                             ends) for span in spans_of(paragraph.context, 4)}
                best = sorted(scores, key=scores.get, reverse=True)[:count]
                texts = {paragraph.context[slice(*span)]: np.exp(scores[span]) for span in best
                         if scores[span] > scores[best[0]] + np.log(0.01)}
                weights = {text: p ** (1 / temperature) for text, p in texts.items()}
                gains = {text: sum(w * f1(text, [other]) for other, w in weights.items()) / sum(weights.values())
                         for text in texts}
                row = rows[question.id]
                assert gains[row["text"]] == pytest.approx(max(gains.values()), abs=1e-4)
                assert row["expected_f1"] == pytest.approx(max(gains.values()), abs=1e-4)
                assert row["candidates_log_probability"] == pytest.approx(np.log(sum(texts.values())), abs=1e-4)
                assert predictions[question.id] == row["text"] == paragraph.context[row["start"] : row["end"]]
                expected.append(row["expected_f1"])
        metrics = json.loads((target / "metrics.json").read_text())
        assert (metrics["candidates"], metrics["span_temperature"]) == (count, temperature)
        assert metrics["expected_f1"] == pytest.approx(100 * np.mean(expected))
        assert metrics["expected_f1"] < 99


@pytest.fixture(scope="module")
def smoothed(folder):
    """Runs with smoothed labels: of an adapter, which is also merged, and of all weights."""
    for method in ("lora", "full"):
        assert main(["train", "--base", str(folder / "base"), "--data", str(folder / "dev.json"), "--output",
                     str(folder / f"smoothed-{method}"), "--method", method, "--label-smoothing", "0.3", "--max-steps",
                     "3", "--learning-rate", "1e-3", "--precision", "fp32"]) == 0
    assert main(["merge", "--adapter", str(folder / "smoothed-lora"), "--output", str(folder / "smoothed-merged")]) == 0
    return folder


@pytest.mark.parametrize("method, model", [
    ("lora", ("--adapter", "smoothed-lora")), ("full", ("--base", "smoothed-full/model")),
    ("merged", ("--base", "smoothed-merged"))])
def test_spans_are_freed_from_the_label_smoothing_that_was_learnt(smoothed, method, model, monkeypatch):
    def spans(name, *more):
        assert main(["evaluate", *model, "--data", "dev.json", "--output", f"{method}-{name}", "--extractive",
                     "--max-span-words", "4", "--precision", "fp32", *more]) == 0
        metrics = json.loads((smoothed / f"{method}-{name}/metrics.json").read_text())
        rows = map(json.loads, (smoothed / f"{method}-{name}/spans.jsonl").read_text().splitlines())
        return metrics["label_smoothing"], {row["id"]: row for row in rows}

    monkeypatch.chdir(smoothed)
    told, found = spans("own")
    assert told == 0.3 and (told, found) == spans("given", "--label-smoothing", "0.3")
    untold, plain = spans("plain", "--label-smoothing", "0")
    assert untold == 0.0
    session = load(str(smoothed / "base"), smoothed / "smoothed-lora/adapter") if method == "lora" else load(model[1])
    for smoothing, rows in ((0.3, found), (0.0, plain)):
        extractor = Extractor(session.model, session.tokenizer, smoothing=smoothing)
        for paragraph in load_data("dev.json").paragraphs:
            for question in paragraph.questions:
                expected, = extractor.answer(paragraph.context, [question.text], max_words=4)
                row = rows[question.id]
                assert (row["text"], row["start"], row["end"]) == expected[:3]
                assert row["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)
                assert row["empty_log_probability"] == pytest.approx(expected.empty_log_probability, abs=1e-4)
    assert all(found[name]["log_probability"] != plain[name]["log_probability"] for name in found)


def test_the_base_beside_an_adapter_has_learnt_no_smoothing(smoothed, monkeypatch):
    monkeypatch.chdir(smoothed)
    common = ["--data", "dev.json", "--extractive", "--max-span-words", "4", "--precision", "fp32"]
    assert main(["evaluate", "--adapter", "smoothed-lora", "--with-base", *common, "--output", "beside"]) == 0
    beside = json.loads(Path("beside/base/metrics.json").read_text())
    assert beside["label_smoothing"] == 0.0
    assert Path("beside/base/spans.jsonl").read_text() == Path("found/spans.jsonl").read_text()
    assert main(["compare", "--adapters", "smooth=smoothed-lora", "--base", "base", "--data", "dev.json", "--modes",
                 "extractive", "--precisions", "fp32", "--output", "comparison"]) == 0
    told = {path.parent.name: json.loads(path.read_text())["label_smoothing"]
            for path in Path("comparison/systems").glob("*/metrics.json")}
    assert sorted(told.values()) == [0.0, 0.3]


@pytest.mark.parametrize("value, message", [("1", "label_smoothing"), ("-0.1", "label_smoothing"), (None, None)])
def test_the_record_of_label_smoothing(smoothed, tmp_path, value, message, capsys):
    adapter = Path(shutil.copytree(smoothed / "smoothed-lora/adapter", tmp_path / "adapter"))
    record = json.loads((adapter / "prompting.json").read_text())
    assert record.pop("label_smoothing") == 0.3
    (adapter / "prompting.json").write_text(json.dumps({**record, **({"label_smoothing": json.loads(value)} if value
                                                                     else {})}))
    code = main(["evaluate", "--adapter", str(adapter), "--data", str(smoothed / "dev.json"), "--extractive",
                 "--output", str(tmp_path / "out")])
    if message is None:  # as earlier versions wrote it
        assert code == 0 and json.loads((tmp_path / "out/metrics.json").read_text())["label_smoothing"] == 0.0
    else:
        assert code == 2 and "label_smoothing: expected a number from 0 to less than 1" in capsys.readouterr().err


def test_a_span_of_which_most_is_right_goes_before_the_likeliest():
    spans = [Extract(text, 0, len(text), float(np.log(p)), float(np.log(0.4)))
             for text, p in (("Rome", 0.2), ("old city of Rome", 0.15), ("old city of Rome, 753", 0.15))]
    found = most_expected(spans, Candidates(3, "squad", 1.0))[0]
    assert (found.text, found.start, found.end, found.log_probability) == (*spans[1][:3], spans[1].log_probability)
    assert found.expected_f1 == pytest.approx((0.2 * 2 / 5 + 0.15 + 0.15 * 8 / 9) / 0.5)
    assert found.candidates_log_probability == pytest.approx(np.log(0.5))
    assert found.null_odds == pytest.approx(np.log(0.4 / (found.expected_f1 * 0.5)))
    assert spans[1].null_odds == pytest.approx(np.log(0.4 / 0.15))
    nothing = Extract("", 0, 0, -np.inf, -1.0)
    assert most_expected([nothing], Candidates(3, "squad", 1.0))[0] == nothing
    empty = most_expected([spans[0]._replace(text="the")], Candidates(3, "squad", 1.0))[0]
    assert empty.null_odds == sys.float_info.max
    sure = [spans[0]._replace(log_probability=float(np.log(0.5))), *spans[1:]]
    assert [most_expected(sure, Candidates(3, "squad", t))[0].text for t in (1.0, 2.0)] == ["Rome", "old city of Rome"]


def test_the_highest_expected_f1_of_samples(folder, session, capsys):
    def answered(name, *more):
        assert main(["evaluate", "--base", str(folder / "base"), "--data", str(folder / "dev.json"), "--output",
                     str(folder / name), "--aim", "f1", "--candidates", "6", "--max-new-tokens", "6", "--precision",
                     "fp32", *more]) == 0
        return json.loads((folder / name / "predictions.json").read_text())

    found = answered("sampled", "--batch-size", "5")
    assert "of 6 samples the one with the highest expected F1" in capsys.readouterr().err
    assert found == answered("sampled-2") != answered("sampled-3", "--seed", "7")
    generator, expected = Generator(session.model, session.tokenizer), {}
    asked = [(p.context, q.text, q.id) for p in load_data(str(folder / "dev.json")).paragraphs for q in p.questions]
    decoding = Decoding(6, Sampling(temperature=1.0, seed=42), "\n")
    several = generator.continuations(generator.groups([pair[:2] for pair in asked]), decoding, 6, trim=True)
    for (_, _, name), texts in zip(asked, several):
        texts = [text.strip() for text in texts]
        gains = {text: sum(f1(text, [other]) for other in texts) for text in texts}
        assert gains[found[name]] == pytest.approx(max(gains.values()))
        expected[name] = max(gains.values()) / 6
    metrics = json.loads((folder / "sampled" / "metrics.json").read_text())
    assert metrics["expected_f1"] == pytest.approx(100 * np.mean(list(expected.values())))


def test_comparing_what_answers_aim_at(folder, capsys):
    assert main(["compare", "--base", str(folder / "base"), "--data", str(folder / "dev.json"), "--modes",
                 "extractive,extractive-f1,sampled-f1", "--precisions", "fp32", "--max-new-tokens", "6", "--output",
                 str(folder / "compared")]) == 0
    assert "base sampled-f1" in capsys.readouterr().out
    systems = [json.loads((folder / "compared" / "systems" / f"base {mode}" / "metrics.json").read_text())
               for mode in ("extractive", "extractive-f1", "sampled-f1")]
    assert [system.get("candidates") for system in systems] == [None, 20, 20]


def test_ranks_do_not_sample(folder, monkeypatch):
    monkeypatch.setattr(task, "join", lambda: SimpleNamespace(size=2))
    for how, found in ((Answering(candidates=5), "aim f1 without extractive"),
                       (Answering(Decoding(5, Sampling(temperature=0.5))), "a temperature")):
        with pytest.raises(UserError, match=f"Under mpirun: .* found {found}"):
            task.evaluate(str(folder / "base"), str(folder / "dev.json"), str(folder / "ranks"), how=how)


@pytest.mark.parametrize("flags, message", [
    (["--candidates", "5"], "has no effect unless aim is f1"),
    (["--aim", "f1", "--span-temperature", "1"], "has no effect without extractive and aim f1"),
    (["--extractive", "--aim", "f1", "--span-temperature", "0"], "span_temperature"),
    (["--aim", "f1", "--beams", "3"], "the candidates are samples"),
    (["--aim", "f1", "--candidates", "1"], "candidates"),
    (["--aim", "em"], "aim"),
    (["--label-smoothing", "0.1"], "has no effect without extractive"),
    (["--extractive", "--label-smoothing", "1"], "label_smoothing"),
])
def test_settings_of_the_aim_that_contradict(folder, flags, message, capsys):
    assert main(["evaluate", "--base", str(folder / "base"), "--data", str(folder / "dev.json"), "--output",
                 str(folder / "none"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_extracted(folder, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    common = ["evaluate", "--base", str(folder / "base"), "--output", str(tmp_path / "out"), "--extractive"]
    assert main([*common, "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert "these prompts have none" in capsys.readouterr().err
    assert main([*common, "--data", str(folder / "dev.json"), "--beams", "4"]) == 2
    assert "has no effect on spans" in capsys.readouterr().err
