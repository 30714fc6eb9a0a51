"""Questions without an answer, and Chinese, from the file to the scores, on a small base."""

from __future__ import annotations

import json

import numpy as np
import pytest

import small_run
from inference.test_span_search import log_probabilities
from jittor_lora.cli.main import main
from jittor_lora.data.examples import training_groups
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.data.stream import build_stream
from jittor_lora.data.template import Template
from jittor_lora.evaluation.metrics import read_metrics
from jittor_lora.evaluation.no_answer import best_threshold, thresholded
from jittor_lora.evaluation.scoring import score
from jittor_lora.inference.extraction import Extractor, ending_tokens
from jittor_lora.inference.span_tree import spans_of
from jittor_lora.session import load

CHINESE = "《战国无双3》由光荣和ω-force开发。"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, SQuAD v2 with every other question unanswerable, and a Chinese file."""
    made = tmp_path_factory.mktemp("no-answer")
    small_run.make_base(made / "base")
    whole = json.loads(small_run.make_squad(made / "v1.json", 4).read_text())
    for article in whole["data"]:
        article["paragraphs"][0]["qas"][1].update(answers=[], is_impossible=True)
    (made / "v2.json").write_text(json.dumps({**whole, "version": "v2.0"}))
    qas = [{"id": "a", "question": "谁开发？", "answers": [{"id": "1", "text": "光荣和ω-force", "answer_start": 8}]},
           {"id": "b", "question": "第几部？", "answers": [{"id": "1", "text": "3", "answer_start": 5}]}]
    (made / "zh.json").write_text(json.dumps({"version": "1.3", "data": [
        {"title": "遊戲", "id": "1", "paragraphs": [{"id": "1-1", "context": CHINESE, "qas": qas}]}]}))
    return made


@pytest.fixture(scope="module")
def session(folder):
    return load(str(folder / "base"))


def evaluated(folder, name, *more, data="v2.json"):
    assert main(["evaluate", "--base", str(folder / "base"), "--data", str(folder / data), "--output",
                 str(folder / name), "--max-new-tokens", "8", "--precision", "fp32", *more]) == 0
    return {path.name: json.loads(path.read_text()) for path in (folder / name).glob("*.json")}


def prompt_of(session, data, name):
    """The token ids of a question's prompt."""
    question, context = next((q, p.context) for p in data.paragraphs for q in p.questions if q.id == name)
    pieces = Template().prompt_pieces(context, question.text)
    return [token for piece in pieces for token in session.tokenizer.encode(piece)]


def test_no_answer_is_learnt_as_one_token(folder, session):
    data = load_data(str(folder / "v2.json"))
    assert describe_data(data).endswith("8 questions, 4 of them without an answer")
    groups, _ = training_groups(data, session.tokenizer, Template(), 256)
    completions = {branch.id: branch.completion for group in groups for branch in group.branches}
    end = session.tokenizer.eos_id
    for name, completion in completions.items():
        assert (completion == [end]) == name.endswith("river") and completion[-1] == end
    alone = [group.with_branches([b for b in group.branches if b.id.endswith("river")]) for group in groups]
    for group in alone:
        stream = build_stream([group])
        assert stream.labels.tolist() == [end] and stream.total_weight == 1
        assert stream.label_rows.tolist() == [len(stream.tokens) - 1]  # right after the prompt


def test_without_an_end_of_text_no_answer_cannot_be_learnt(folder, session):
    class Endless:
        """The tokenizer, without an end of text."""
        eos_id, opening = None, ()
        begin, extend = session.tokenizer.begin, session.tokenizer.extend

        def end(self, ids):
            return ids

    groups, report = training_groups(load_data(str(folder / "v2.json")), Endless(), Template(), 256)
    assert sum(len(group.branches) for group in groups) == 4 and len(report.dropped) == 4
    assert "4 dropped: there is no answer, and no end of text to learn that by" in report.lines()


def test_generated_answers_have_odds_of_no_answer(folder, session, capsys):
    files = evaluated(folder, "generated")
    raw, odds, predictions = (files[f"{name}.json"] for name in ("raw_predictions", "null_odds", "predictions"))
    data = load_data(str(folder / "v2.json"), purpose="evaluation")
    ends = ending_tokens(session.tokenizer, ["\n"], 300)
    assert raw.keys() == odds.keys() == predictions.keys() == data.references().keys()
    for name, found in odds.items():
        p = np.exp(np.logaddexp.reduce(log_probabilities(session.model, prompt_of(session, data, name))[-1, ends]))
        assert found == pytest.approx(np.log(p) - np.log1p(-p), abs=1e-3)
    assert predictions == thresholded(raw, odds, 0.0)
    assert "Scores: SQuAD v2" in capsys.readouterr().err


def test_a_threshold_turns_answers_into_none(folder):
    odds = evaluated(folder, "generated")["null_odds.json"]
    middle = sorted(odds.values())[3]
    files = evaluated(folder, "threshold", "--no-answer-threshold", repr(middle), "--batch-size", "3")
    assert files["null_odds.json"] == pytest.approx(odds, abs=1e-4)
    kept = {name for name, text in files["predictions.json"].items() if text}
    assert kept <= {name for name, value in odds.items() if value <= middle} and 0 < len(kept) < 8
    metrics, references = files["metrics.json"], load_data(str(folder / "v2.json")).references()
    found = score(references, files["raw_predictions.json"], scoring="squad-v2").per_question
    assert (metrics["scoring"], metrics["no_answer_threshold"]) == ("squad-v2", middle)
    figures = metrics["squad_v2"]
    assert (figures["best_f1"], figures["best_f1_thresh"]) == best_threshold(found, "f1", files["null_odds.json"])
    assert (figures["HasAns_total"], figures["NoAns_total"], figures["total"]) == (4, 4, 8)
    assert figures["NoAns_exact"] == 100 * sum(not files["predictions.json"][f"{i}-river"] for i in range(4)) / 4
    assert figures["exact"] == metrics["exact_match"]
    assert read_metrics(folder / "threshold" / "metrics.json").scoring == "squad-v2"


def test_spans_are_weighed_against_no_answer(folder):
    files = evaluated(folder, "spans", "--extractive")
    rows = [json.loads(line) for line in (folder / "spans" / "spans.jsonl").read_text().splitlines()]
    for row in rows:
        assert files["null_odds.json"][row["id"]] == row["empty_log_probability"] - row["log_probability"]
        assert files["raw_predictions.json"][row["id"]] == row["text"] != ""
        assert files["predictions.json"][row["id"]] == ("" if files["null_odds.json"][row["id"]] > 0 else row["text"])
    high = max(files["null_odds.json"].values())
    assert "" not in evaluated(folder, "all", "--extractive", "--no-answer-threshold", repr(high))[
        "predictions.json"].values()


@pytest.mark.parametrize("flags", [["--extractive"], []])
def test_the_highest_expected_f1_is_weighed_against_no_answer(folder, flags):
    """No answer is right with probability p, so p is its expected F1; the answer's is (1 - p) times that of the rest,
    or of spans, the sum over the spans."""
    name = f"aim{len(flags)}"
    files = evaluated(folder, name, "--aim", "f1", "--candidates", "5", *flags)
    odds, raw, predictions = (files[f"{name}.json"] for name in ("null_odds", "raw_predictions", "predictions"))
    assert predictions == thresholded(raw, odds, 0.0) and all(raw.values())
    if flags:
        for row in map(json.loads, (folder / name / "spans.jsonl").read_text().splitlines()):
            gain = row["expected_f1"] * np.exp(row["candidates_log_probability"])
            assert odds[row["id"]] == pytest.approx(row["empty_log_probability"] - np.log(gain))
    else:
        plain = evaluated(folder, "generated")["null_odds.json"]
        gains = [np.exp(plain[question] - odds[question]) for question in odds]
        assert all(0 < gain <= 1 + 1e-6 for gain in gains)
        assert files["metrics.json"]["expected_f1"] == pytest.approx(100 * np.mean(gains), rel=1e-4)


def test_v1_is_answered_as_before(folder):
    files = evaluated(folder, "v1", data="v1.json")
    assert files.keys() == {"predictions.json", "metrics.json"}
    assert files["metrics.json"]["scoring"] == "squad" and "squad_v2" not in files["metrics.json"]


def test_beams_have_no_odds(folder, capsys):
    files = evaluated(folder, "beams", "--beams", "2")
    assert "null_odds.json" not in files and files["metrics.json"]["squad_v2"]["total"] == 8
    assert main(["evaluate", "--data", str(folder / "v2.json"), "--output", str(folder / "none"), "--beams", "2",
                 "--no-answer-threshold", "1"]) == 2
    assert "beam search gives no odds" in capsys.readouterr().err


def test_spans_of_chinese_start_and_end_at_any_character(folder, session):
    """The best of all substrings of a Chinese context that start and end at a character, by brute force."""
    extractor, question = Extractor(session.model, session.tokenizer), "谁开发？"
    (found,) = extractor.answer(CHINESE, [question], max_tokens=100)
    ends, template = ending_tokens(session.tokenizer, ["\n"], 300), Template()
    prompt = [t for piece in template.prompt_pieces(CHINESE, question) for t in session.tokenizer.encode(piece)]
    scores = {}
    for start, end in spans_of(CHINESE):
        tokens = session.tokenizer.encode(template.completion_text(CHINESE[start:end]))
        logs = log_probabilities(session.model, [*prompt, *tokens])[len(prompt) - 1 :]
        scores[start, end] = np.logaddexp.reduce(logs[len(tokens), ends]) + sum(
            logs[i, t] for i, t in enumerate(tokens))
    assert {(1, 3), (2, 4), (8, 18), (0, 20)} <= scores.keys()  # 战国, 国无, 光荣和ω-force, up to the end
    assert scores[found.start, found.end] == pytest.approx(max(scores.values()), abs=1e-4)
    assert found.log_probability == pytest.approx(max(scores.values()), abs=1e-4)


def test_a_chinese_file_is_scored_by_its_rule(folder, capsys):
    files = evaluated(folder, "zh", data="zh.json")
    screen = capsys.readouterr().err
    assert files["metrics.json"]["scoring"] == "cmrc" and "Scores: CMRC 2018 and DRCD" in screen
    assert "1 of 2 questions have no reference answer of at most 8 tokens" in screen
    assert evaluated(folder, "en", "--scoring", "squad", data="zh.json")["metrics.json"]["scoring"] == "squad"
    predictions = {"one": {"a": "光荣", "b": "3"}, "two": {"a": "光荣和ω-force。", "b": "4"}}
    for name, answers in predictions.items():
        (folder / f"{name}.json").write_text(json.dumps(answers))
    assert main(["compare", str(folder / "one.json"), str(folder / "two.json"), "--data", str(folder / "zh.json"),
                 "--output", str(folder / "compared")]) == 0
    compared = json.loads((folder / "compared" / "comparison.json").read_text())
    assert compared["scoring"] == "cmrc"
    assert [system["metrics"]["exact_match"] for system in compared["systems"]] == [50, 50]
    assert compared["systems"][0]["metrics"]["f1"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert "CMRC 2018 and DRCD" in capsys.readouterr().out


def test_the_english_rule_needs_answers(folder, capsys):
    assert main(["evaluate", "--base", str(folder / "base"), "--data", str(folder / "v2.json"), "--output",
                 str(folder / "wrong"), "--scoring", "squad"]) == 2
    assert "4 of 8 questions have no reference answer" in capsys.readouterr().err
