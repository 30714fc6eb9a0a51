from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.sources import SHIPPED
from jittor_lora.data.squad import Answer, Question, parse_squad, read_squad
from jittor_lora.data.text_file import SHOWN, parse_json
from jittor_lora.errors import UserError


def answer(text="Rome", start=0):
    return {"text": text, "answer_start": start}


def question(name="q1", **changes):
    return {"id": name, "question": "Where?", "answers": [answer()], **changes}


def paragraph(*qas, context="Rome is old. Rome is large."):
    return {"context": context, "qas": list(qas)}


def squad(*paragraphs, title="T"):
    return {"version": "1.1", "data": [{"title": title, "paragraphs": list(paragraphs)}]}


def parse(value, purpose="training"):
    return parse_squad(value if isinstance(value, str) else json.dumps(value), "f.json", purpose)


def refused(value, purpose="training"):
    with pytest.raises(UserError) as caught:
        parse(value, purpose)
    return str(caught.value)


def test_the_sample_is_read_whole():
    counts = {"sample-train": (24, 913, 4961), "sample-dev": (16, 825, 3905)}
    for name in counts:
        data = read_squad(SHIPPED[name])
        titles = {p.title for p in data.paragraphs}
        assert (len(titles), len(data.paragraphs), len(data)) == counts[name]
        assert data.moved_answers == 0
        for p in data.paragraphs:
            for q in p.questions:
                assert all(p.context.startswith(a.text, a.start) for a in q.answers)
    train, dev = (read_squad(SHIPPED[name]) for name in counts)
    assert not {p.title for p in train.paragraphs} & {p.title for p in dev.paragraphs}


def test_a_squad_file():
    data = parse(squad(paragraph(question("a"), question("b", question="Ü?")), paragraph(context="Nothing asked.")))
    assert [(q.id, q.text) for q in data.paragraphs[0].questions] == [("a", "Where?"), ("b", "Ü?")]
    assert len(data.paragraphs) == 1  # without questions it is useless
    assert len(data) == 2
    assert data.references() == {"a": ["Rome"], "b": ["Rome"]}
    assert parse({"data": [{"paragraphs": [paragraph(question())]}]}).paragraphs[0].title == ""


def test_training_answer_is_the_most_frequent_text_then_the_first():
    texts = ["the city", "Rome", "Rome", "the city", "a"]
    q = Question("q", "?", tuple(Answer(t, i) for i, t in enumerate(texts)))
    assert q.training_answer() == Answer("the city", 0)
    assert Question("q", "?", tuple(q.answers[1:])).training_answer() == Answer("Rome", 1)


@pytest.mark.parametrize(
    ("start", "found", "moved"), [(0, 0, 0), (13, 13, 0), (1, 0, 1), (6, 0, 1), (7, 13, 1), (11, 13, 1), (9999, 13, 1)]
)
def test_an_answer_elsewhere_is_taken_from_the_nearest_place(start, found, moved):
    data = parse(squad(paragraph(question(answers=[answer(start=start)]))))
    assert data.paragraphs[0].questions[0].answers[0].start == found
    assert data.moved_answers == moved


def test_a_missing_answer_is_an_error_in_training_only():
    value = squad(paragraph(question(answers=[answer("Paris", 3)])))
    assert 'data[0].paragraphs[0].qas[0].answers[0].text: expected a text that occurs in' in refused(value)
    assert parse(value, "evaluation").paragraphs[0].questions[0].answers == (Answer("Paris", -1),)
    assert parse(squad(paragraph({"id": "q", "question": "?"})), "prompts").paragraphs[0].questions[0].answers == ()


def test_all_offenders_are_listed_with_their_places():
    message = refused(
        squad(
            paragraph(question("a"), question("a"), question("c", answers=[])),
            paragraph(question("d", question=7), {"id": "e", "answers": [{}]}),
            {"context": "", "qas": {}},
            "text",
        )
    )
    for words in (
        "f.json: 9 places are not as expected.",
        'data[0].paragraphs[0].qas[1].id: expected an id not used before (it is at data[0].paragraphs[0].qas[0]), '
        'found "a"',
        "data[0].paragraphs[0].qas[2].answers: expected at least one answer",
        "data[0].paragraphs[1].qas[0].question: expected a text that is not empty, found 7",
        "data[0].paragraphs[1].qas[1].question: expected a text that is not empty, found nothing",
        "data[0].paragraphs[1].qas[1].answers[0].text: ",
        "data[0].paragraphs[1].qas[1].answers[0].answer_start: expected a whole number, 0 or more, found nothing",
        "data[0].paragraphs[2].context: ",
        "data[0].paragraphs[2].qas: expected a list, found an empty object",
        'data[0].paragraphs[3]: expected an object, found "text"',
    ):
        assert words in message


@pytest.mark.parametrize("start", [-1, 0.0, True, "0", None, [0]])
def test_wrong_answer_starts(start):
    assert "answer_start: expected a whole number" in refused(squad(paragraph(question(answers=[answer(start=start)]))))


def test_questions_without_an_answer_are_refused_with_their_name():
    message = refused(squad(paragraph(question(), question("b", answers=[], is_impossible=True))))
    assert "qas[1].is_impossible: expected false or nothing, found true" in message
    assert "SQuAD 2.0" in message
    assert len(parse(squad(paragraph(question(is_impossible=False))))) == 1


def test_a_hundred_thousand_offenders_fit_on_a_screen():
    message = refused(squad(paragraph(*[question("same") for _ in range(100_001)])))
    assert "100,000 places" in message
    assert f"… and {100_000 - SHOWN:,} more" in message
    assert len(message.splitlines()) == SHOWN + 3
    assert len(message) < 4000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cut off"),
        ('{"data": [{"title": "T"', "cut off"),
        ('{"data": [{"title": "The middle of a tex', "cut off"),
        ("{'data': []}", "not JSON"),
        ("[]", "expected an object with the key"),
        ("7", "expected an object with the key"),
        ("{}", "data: expected a list, found nothing"),
        ('{"data": []}', "no questions"),
        ('{"data": [{"paragraphs": []}]}', "no questions"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": []}]}]}', "no questions"),
        ('{"data": NaN}', "NaN is not JSON"),
        ('{"data": -Infinity}', "-Infinity is not JSON"),
        ('{"data": [], "data": []}', 'the key "data" occurs twice'),
        ('{"data": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
        ('{"data": 1e999}', "data: expected a list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data":' * 100_000, "nested too deeply"),
        ('{"data": [{"title": [], "paragraphs": []}]}', "title: expected a text"),
        (json.dumps(squad(paragraph(question(question="half \ud83d a pair")))), "text that is valid UTF-8"),
    ],
)
def test_hostile_json_is_one_message(text, words):
    message = refused(text)
    assert words in message
    assert len(message) < 2000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["data", "title", "paragraphs", "context", "qas", "id", "question", "answers", "text", "answer_start", "x"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)


@given(JSON.map(lambda inner: {"data": [{"paragraphs": [inner]}]}) | JSON, st.sampled_from(["training", "evaluation"]))
def test_any_json_is_read_or_refused(value, purpose):
    try:
        assert len(parse(value, purpose)) > 0
    except UserError as error:
        assert str(error).startswith("f.json: ")


def test_a_byte_order_mark_is_dropped_and_other_encodings_refused(tmp_path):
    path, text = tmp_path / "f.json", json.dumps(squad(paragraph(question())))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read_squad(path)) == 1
    for raw, words in (
        (text.encode("utf-16"), "UTF-16"),
        (text.replace("Where", "Où").encode("latin-1"), "found byte 0xf9"),
        (b'{"data": "\n\xff"}', "found byte 0xff at offset 11 (line 2)"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\x1f\x8b\x08\x00", "packed (gzip)"),
    ):
        path.write_bytes(raw)
        with pytest.raises(UserError) as caught:
            read_squad(path)
        assert words in str(caught.value)


def test_a_path_that_is_not_a_file_is_refused(tmp_path):
    for path, words in ((tmp_path / "none.json", "no such file"), (tmp_path, "a folder"), ("/dev/null", "regular")):
        with pytest.raises(UserError, match=words):
            read_squad(path)


@given(JSON)
def test_strict_parsing_agrees_with_json(value):
    text = json.dumps(value)
    if "Infinity" not in text:
        assert parse_json(text) == value


def subset_ids(data):
    return [q.id for p in data.paragraphs for q in p.questions]


def test_subsets_are_exact_nested_spread_and_in_order():
    data = read_squad(SHIPPED["sample-train"])
    everything = subset_ids(data)
    smaller = set()
    for count in (1, 7, 100, 101, 1000, 4961, 10**6):
        part = data.subset(count, seed=3)
        ids = subset_ids(part)
        assert len(ids) == min(count, 4961) == len(part)
        chosen = set(ids)
        assert smaller <= chosen
        assert ids == [i for i in everything if i in chosen]
        smaller = chosen
    part = data.subset(400, seed=3)
    assert len({p.title for p in part.paragraphs}) == 24
    whole = {p.context: len(p.questions) for p in data.paragraphs}
    assert sum(len(p.questions) != whole[p.context] for p in part.paragraphs) <= 1
    assert subset_ids(part) != subset_ids(data.subset(400, seed=4))
    assert subset_ids(data.subset(10, 0)) == subset_ids(data.subset(10, 0))
