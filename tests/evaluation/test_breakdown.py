from __future__ import annotations

import json

import pytest

from jittor_lora.data.jsonl import parse_jsonl
from jittor_lora.data.squad import parse_squad
from jittor_lora.evaluation.breakdown import NONE, UNKNOWN, breakdown_json, breakdown_table, breakdowns, extremes
from jittor_lora.evaluation.duplicates import duplicates
from jittor_lora.evaluation.items import Item, items_of
from jittor_lora.evaluation.scoring import score

CONTEXT = "Rome is old. It lies on seven hills near the sea and has 2,800,000 people."


def squad(*questions, context=CONTEXT):
    qas = [{"id": name, "question": text, "answers": [{"text": answer, "answer_start": max(context.find(answer), 0)}]}
           for name, text, answer in questions]
    paragraphs = [{"context": context, "qas": qas}]
    return parse_squad(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}), "f.json", "evaluation")


DATA = squad(("a", "What is old?", "Rome"), ("b", "On how many hills does it lie?", "seven"),
             ("c", "How big is Rome?", "has 2,800,000 people"), ("d", "Name the city.", "Paris"))


@pytest.mark.parametrize(("question", "word"), [
    ("What is it?", "what"), ("In which year?", "which"), ("HOW MANY are there?", "how many"),
    ("How much?", "how much"),
    ("How manyfold?", "how"), ("Somewhat like it?", "other"), ("Who's who?", "who"), ("Whose?", "whose"), ("", "other"),
])
def test_question_word(question, word):
    assert Item("1", question, "", ("x",), "x").question_word == word


def test_items_of_questions_and_of_prompts():
    first, *_, last = items_of(DATA)
    assert (first.id, first.context, first.references, first.start) == ("a", CONTEXT, ("Rome",), 0)
    assert last.start == -1  # not in the context
    lines = '{"prompt": "p", "completion": " x y"}\n{"prompt": "p", "completion": "z"}'
    prompts = parse_jsonl(lines, "f", "evaluation")
    assert items_of(prompts) == [Item("1", "p", "", ("x y", "z"), "x y")]


def test_questions_without_an_answer_are_groups_of_their_own():
    whole = {"version": "v2.0", "data": [{"paragraphs": [{"context": CONTEXT, "qas": [
        {"id": "a", "question": "What?", "answers": [{"text": "Rome", "answer_start": 0}], "is_impossible": False},
        {"id": "b", "question": "Who?", "answers": [], "is_impossible": True}]}]}]}
    data = parse_squad(json.dumps(whole), "f.json", "evaluation")
    found = breakdowns(items_of(data), score(data.references(), {"a": "Rome", "b": "x"}, scoring="squad-v2"))
    for kind in ("answer length", "place of the answer", "answer"):
        right, wrong = found[kind]
        assert (wrong.name, wrong.count, wrong.f1.mean, right.f1.mean) == (NONE, 1, 0, 100)


def test_chinese_is_as_long_as_its_characters():
    data = squad(("a", "哪里？", "横滨市"), context="光荣位于横滨市。" * 20)
    found = breakdowns(items_of(data), score(data.references(), {"a": "横滨"}, scoring="cmrc"))
    assert [group.name for group in found["answer length"]] == ["3"]
    assert [group.name for group in found["context length"]] == ["121–160"]


def test_groups_hold_every_question_once_with_its_scores():
    found = breakdowns(items_of(DATA), score(DATA.references(), {"a": "Rome", "b": "seven hills", "c": "people"}))
    assert {kind: {group.name: group.count for group in groups} for kind, groups in found.items()} == {
        "question word": {"what": 1, "how many": 1, "how": 1, "other": 1},
        "answer length": {"1": 3, "3": 1},
        "context length": {"0–80": 4},
        "place of the answer": {"first fifth": 1, "second fifth": 1, "fourth fifth": 1, UNKNOWN: 1},
    }
    what, how_many, *_ = found["question word"]
    assert (what.exact_match.mean, what.f1.mean) == (100, 100)
    assert (how_many.exact_match.mean, how_many.f1.mean) == (0, pytest.approx(200 / 3))
    assert found["context length"][0].exact_match.mean == 25
    assert found["context length"][0].exact_match.low <= 25 <= found["context length"][0].exact_match.high


def test_the_tables_show_all_groups():
    found = breakdowns(items_of(DATA), score(DATA.references(), {"a": "Rome"}))
    lines = breakdown_table(found).splitlines()
    assert len(lines) == 1 + 4 + sum(map(len, found.values()))
    assert [line.split()[:3] for line in lines if line.strip().startswith("what")] == [["what", "1", "100.00"]]
    plain = json.loads(json.dumps(breakdown_json(found)))
    assert plain["question word"][0]["exact_match"] == {"mean": 100, "low": 0, "high": 100}  # one paragraph


def test_prompts_have_no_groups_by_context():
    prompts = parse_jsonl('{"prompt": "p", "completion": "x"}', "f", "evaluation")
    found = breakdowns(items_of(prompts), score(prompts.references(), {}))
    assert list(found) == ["answer length"]


def test_extremes_are_ordered_and_stable():
    worst, best = extremes(score({"a": ["x"], "b": ["x y"], "c": ["x"], "d": ["x"]},
                                 {"a": "x", "b": "x", "c": "z", "d": "q"}), 3)
    assert [question.id for question in worst] == ["c", "d", "b"]
    assert [question.id for question in best] == ["a", "b", "c"]


def test_duplicates_need_the_same_words_in_question_and_context():
    other = "Athens is old."
    train = items_of(squad(("t1", "What is old ?", "Rome"), context=CONTEXT.upper().replace(".", " ."))) + items_of(
        squad(("t2", "Where?", "Athens"), context=other))
    found = duplicates(train, items_of(DATA))
    assert found.questions == [("t1", "a")]
    assert found.contexts == ["a", "b", "c", "d"]
    assert duplicates(train, items_of(squad(("x", "Where?", "Rome")))).questions == []  # about another context
    prompts = items_of(parse_jsonl('{"prompt": "p :", "completion": "x"}', "f", "evaluation"))
    assert duplicates(prompts, prompts).questions == [("1", "1")]
    assert duplicates(prompts, prompts).contexts == []
