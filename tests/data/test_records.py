"""Records one per line, across lines, in an array, and SQuAD as the datasets library writes it."""

from __future__ import annotations

import json

import pytest

from jittor_lora.cli.generate import read_records
from jittor_lora.data.sources import load_data
from jittor_lora.data.squad import SquadData
from jittor_lora.errors import UserError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", "id": "x"}]
FORMS = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "array": json.dumps(ROWS),
    "array of lines": "[" + ",\n ".join(map(json.dumps, ROWS)) + "]\n",
    "indented array": json.dumps(ROWS, indent=2),
    "indented objects": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "objects side by side": "".join(json.dumps(row, indent=1) for row in ROWS),
}
RIVER = "Le café de Rome is by the river."


def questions(*rows, context=RIVER):
    return "\n".join(json.dumps({"id": str(i), "context": context, "question": f"{i}?", **row})
                     for i, row in enumerate(rows))


def answer(text, start):
    return {"answers": {"text": [text], "answer_start": [start]}}


def load(tmp_path, text, **options):
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    return load_data(str(path), **options)


def refused(tmp_path, text) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_prompts(tmp_path, form):
    data = load(tmp_path, FORMS[form])
    found = [(prompt.text, [c.text for c in prompt.completions]) for prompt in data.prompts]
    assert found == [("a", ["b"]), ("c", ["d"])] and data.prompts[1].id == "x"
    assert read_records(data.path) == ROWS


def test_positions_are_named(tmp_path):
    broken = [ROWS[0], {"prompt": "c"}, 3]
    text = refused(tmp_path, json.dumps(broken))
    assert "item 2, completion: expected" in text and "item 3: expected an object" in text
    text = refused(tmp_path, "\n".join(json.dumps(value, indent=2) for value in broken[:2]))
    assert "line 5, completion: expected" in text
    text = refused(tmp_path, FORMS["indented objects"][:-3])
    assert "line 5: expected a JSON object (the JSON text ends too early" in text
    assert "expected a JSON array (the JSON text ends too early" in refused(tmp_path, FORMS["indented array"][:-3])
    assert "occurs twice" in refused(tmp_path, '{\n"prompt": "a", "prompt": "b", "completion": "c"}')


@pytest.mark.parametrize("row, message", [
    ({"text": "a"}, "These are whole texts"),
    ({"q": "a", "note": 1}, "Its fields: q, note."),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, 'line 1, completion: expected "completion"'),
    ({"question": "a", "chosen": "b", "rejected": "c"}, "These are preferences"),
    ({"question": "a", "answer": "b"}, "--columns prompt=question,completion=answer"),
    ({"instruction": "a", "context": "b", "response": "c"}, "--columns output=response,input=context"),
    ({"dialog": [{"speaker": "USER", "text": "b"}]}, "--columns messages=dialog,role=speaker,content=text"),
])
@pytest.mark.parametrize("array", [False, True])
def test_unknown_forms_are_named_with_what_to_do(tmp_path, row, message, array):
    found = refused(tmp_path, json.dumps([row] if array else row))
    assert message.replace("line 1", "item 1" if array else "line 1") in found


@pytest.mark.parametrize("array", [False, True])
def test_squad_as_datasets_writes_it(tmp_path, array):
    text = questions(answer("Rome", 11), answer("river", 0), answer("café", 3))
    other = questions({**answer("b", 0), "id": "last"}, context="b")
    lines = f"{text}\n{other}\n{questions({**answer('Rome', 11), 'id': 'again'})}"
    data = load(tmp_path, json.dumps(list(map(json.loads, lines.split("\n")))) if array else lines)
    assert isinstance(data, SquadData) and (len(data), data.moved_answers) == (5, 1)
    assert [[q.id for q in p.questions] for p in data.paragraphs] == [["0", "1", "2", "again"], ["last"]]
    assert data.paragraphs[0].questions[1].answers[0].start == RIVER.index("river")


def test_questions_without_an_id_get_the_number_of_their_line(tmp_path):
    row = {"context": "a b", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}
    assert load(tmp_path, json.dumps(row)).paragraphs[0].questions[0].id == "1"


def test_the_id_of_a_question_may_be_a_number(tmp_path):
    row = {"id": 7, "context": "a b", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}
    assert load(tmp_path, json.dumps(row)).paragraphs[0].questions[0].id == "7"


@pytest.mark.parametrize("row, message", [
    ({"answers": {"text": ["Rome"], "answer_start": []}}, "line 1.answers: expected lists text and answer_start"),
    ({"answers": {"text": [], "answer_start": []}, "is_impossible": False}, "line 1.answers: expected at least one"),
    ({}, "line 1.answers: expected a list"),
    (answer("Paris", 0), "line 1.answers[0].text: expected a text that occurs in the paragraph's context, found"),
    ({**answer("Rome", 11), "question": ""}, "line 1.question: expected"),
])
def test_invalid_squad_rows(tmp_path, row, message):
    assert message in refused(tmp_path, questions(row))


def test_squad_rows_as_prompts(tmp_path):
    assert len(load(tmp_path, questions({}, {}), purpose="prompts")) == 2


@pytest.mark.parametrize("flat", [False, True])
def test_a_difference_in_normal_form_is_reported(tmp_path, flat):
    row = {"id": "1", "question": "?", "answers": [{"text": "cafe\u0301", "answer_start": 3}]}
    text = json.dumps({"context": RIVER, **row} if flat else
                      {"data": [{"title": "t", "paragraphs": [{"context": RIVER, "qas": [row]}]}]})
    assert "differ only in Unicode normal form: write both in NFC" in refused(tmp_path, text)
