"""CSV and TSV: delimiters, quotes, headers, and what is wrong with a record."""

from __future__ import annotations

import csv
import json

import pytest

from conversation_files import turns
from jittor_lora.data.jsonl import PromptData
from jittor_lora.data.sources import load_data
from jittor_lora.data.squad import SquadData
from jittor_lora.errors import UserError


@pytest.fixture
def load(tmp_path):
    def load(content, **options):
        path = tmp_path / "data.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_data(str(path), **options)
    return load


@pytest.fixture
def refused(load):
    def refused(content, **options) -> str:
        with pytest.raises(UserError) as caught:
            load(content, **options)
        return str(caught.value)
    return refused


def rows(data: PromptData) -> list[tuple[str, str, str]]:
    return [(c.id, prompt.text, c.text) for prompt in data.prompts for c in prompt.completions]


@pytest.mark.parametrize("text", [
    "prompt,completion\na,b\nc,d\n", "prompt\tcompletion\na\tb\nc\td", "prompt;completion\r\na;b\r\nc;d\r\n",
    "prompt|completion\na|b\nc|d\n", '"prompt","completion"\n"a","b"\n"c","d"\n', "\ufeffprompt,completion\na,b\nc,d",
    " prompt , completion \na,b\nc,d\n", "completion,note,prompt\nb,x,a\nd,y,c\n", ",prompt,completion\n0,a,b\n1,c,d\n",
])
def test_delimiters_and_headers(load, text):
    assert rows(load(text)) == [("2", "a", "b"), ("3", "c", "d")]


def test_quoted_fields(load):
    text = 'prompt,completion,id\n"a, ""b""\nc\r\nd","\t;|",x\n\n"""",\u2028,\n'
    assert rows(load(text)) == [("x", 'a, "b"\nc\r\nd', "\t;|"), ("6", '"', "\u2028")]


def test_the_delimiter_is_the_one_of_the_header_not_of_the_texts(load):
    lines = "".join(f"a{i}, b, c, d\te, f\n" for i in range(50))
    assert rows(load("prompt\tcompletion\n" + lines))[0] == ("2", "a0, b, c, d", "e, f")
    assert "; " in rows(load("prompt,completion\n" + "a; b; c,d\n" * 9))[0][1]


def test_one_column_with_messages(load):
    cell = json.dumps([{"role": "user", "content": 'a, "b"'}, {"role": "assistant", "content": "c\n"}])
    cell = cell.replace('"', '""')
    for header in ("messages", "conversations"):
        assert load(f'{header}\n"{cell}"\n').conversations[0].turns == turns('a, "b"', "c\n")


def test_cells_that_look_like_json_stay_texts(load):
    assert rows(load('prompt,completion\n"[1, 2]","{}"\n')) == [("2", "[1, 2]", "{}")]


def test_questions_with_one_answer(load):
    text = ("context,question,answer\nRome is old. Rome is big.,Which city?,Rome\nRome is old. Rome is big.,How?,big\n"
            '"A, b.",What?,b\n')
    data = load(text)
    assert isinstance(data, SquadData)
    assert [[(q.id, q.answers[0].start) for q in p.questions] for p in data.paragraphs] == [[("2", 0), ("3", 21)],
                                                                                          [("4", 3)]]
    assert data.moved_answers == 0


def test_questions_with_places_or_lists_of_answers(load, refused):
    start = "id,context,question,answer,answer_start\n"
    assert load(start + "x,Rome. Rome.,?,Rome,6\n").paragraphs[0].questions[0].answers[0].start == 6
    assert load(start + "x,Rome. Rome.,?,Rome,5\n").moved_answers == 1
    assert "answers[0].answer_start: expected a whole number" in refused(start + "x,Rome.,?,Rome,five\n")
    assert "expected a text that occurs in the paragraph's context" in refused(start + "x,Rome.,?,Paris,\n")
    for cell in ('"{""text"": [""Rome""], ""answer_start"": [0]}"', '"[""Rome"", ""Rome.""]"'):
        found = load(f"context,question,answers\nRome.,?,{cell}\n").paragraphs[0].questions[0].answers
        assert [(answer.text, answer.start) for answer in found][0] == ("Rome", 0)
    assert "line 2.answers: expected a list" in refused(
        "context,question,answers\nRome.,?,\"{'text': ['Rome'], 'answer_start': [0]}\"\n")


def test_instructions(load):
    text = "instruction,input,output\nSay hi,in French,Salut\nSay bye,,Au revoir\n"
    assert [one.turns for one in load(text).conversations] == [turns("Say hi\nin French", "Salut"),
                                                               turns("Say bye", "Au revoir")]


@pytest.mark.parametrize("text, message", [
    ("prompt,completion\na,b\nc\nd,e,f\n", "line 3: expected 2 fields, as in the header, found 1"),
    ("prompt,completion\na,b\nc\nd,e,f\n", "line 4: expected 2 fields, as in the header, found 3"),
    ('prompt,completion\na,"b\nc,d\n', 'line 2: expected a record (a field with the delimiter'),
    ('prompt,completion\na,"b\nc,d\n', 'found "unexpected end of data"'),
    ('prompt,completion\na,"b" c\n', "line 2: expected a record"),
    ("prompt,completion\na,b\rc\n", 'found "a carriage return outside quotes"'),
    ("prompt,completion\na,\n,b\n", "line 2, completion: expected \"completion\" with a text that is not empty"),
    ("prompt,completion\na,\n,b\n", "line 3, prompt: expected"),
    ("prompt,completion,prompt\na,b,c\n", "expected a header whose fields differ, found prompt twice"),
    ("prompt,completion,id\na,b,1\nc,d,1\n", "line 3, id: expected an id not used before (it is in line 2)"),
    ("prompt,completion\n", "no rows in it"),
    ("what,ever,x\n1,2,3\n", "the format is not recognised. Its fields: what, ever, x."),
    ("Es war einmal, sagt man.\n", "expected JSON, JSON Lines, CSV or TSV with a header"),
    ("messages\n[]\n", "line 2, messages: expected a list of turns, found a list of 0"),
    ('messages\n"[{"\n', 'line 2, messages: expected a list of turns, found "[{"'),
])
def test_what_is_refused(refused, text, message):
    assert message in refused(text)


def test_the_limit_of_the_csv_module_stays(load):
    before = csv.field_size_limit()
    assert len(rows(load(f"prompt,completion\n{'x' * 300_000},b\n"))[0][1]) == 300_000
    assert csv.field_size_limit() == before
