from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.sources import SHIPPED
from jittor_lora.data.squad import Answer, Question, parse_flat, parse_squad, read_squad
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


V2 = squad(paragraph(question(is_impossible=False),
                     question("b", answers=[], is_impossible=True, plausible_answers=[answer()])))


def test_a_question_of_v2_may_have_no_answer():
    data = parse(V2)
    assert data.no_answers and data.references() == {"q1": ["Rome"], "b": []}
    assert data.paragraphs[0].questions[1].training_answer() == Answer("", -1)
    assert data.subset(1, 0).no_answers and data.only({"q1"}).no_answers
    # Some files give an empty text.
    assert parse(squad(paragraph(question(answers=[answer("", -1)], is_impossible=True)))).references() == {"q1": []}
    assert parse(squad(paragraph(question(answers=None, is_impossible=True))), "prompts").references() == {"q1": []}


@pytest.mark.parametrize(("version", "v2"), [("v2.0", True), ("2", True), (2.0, True), ("v1.1", False), ("1.3", False),
                                             ("v20", False), (None, False)])
def test_version_2_may_have_questions_without_an_answer(version, v2):
    assert parse({**squad(paragraph(question())), "version": version}).no_answers is v2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": []}, "answers: expected at least one answer, or is_impossible: true"),
        ({"is_impossible": True}, "answers: expected an empty list, as is_impossible is true, found a list of 1"),
        ({"is_impossible": True, "answers": 7}, "answers: expected an empty list"),
        ({"is_impossible": True, "answers": [7]}, "answers: expected an empty list"),
        ({"is_impossible": "no"}, 'is_impossible: expected true or false, found "no"'),
        ({"is_impossible": None}, "is_impossible: expected true or false, found null"),
    ],
)
def test_contradictions_about_the_answer_are_refused(changes, words):
    for purpose in ("training", "evaluation"):
        assert "qas[0]." + words in refused(squad(paragraph(question(**changes))), purpose)


CHINESE = "《战国无双3》由光荣开发。光荣位于横滨。"
DRCD = {"version": "1.3", "data": [{"title": "遊戲", "id": "1", "paragraphs": [
    {"id": "1-1", "context": "基督新教強調「因信稱義」。", "qas": [
        {"id": "1-1-1", "question": "強調什麼?", "answers": [{"id": "1", "text": "因信稱義", "answer_start": 7}]}]}]}]}


def test_offsets_count_characters():
    data = parse(squad(paragraph(question(answers=[answer("光荣", 8)]), question("b", answers=[answer("光荣", 14)]),
                                 question("c", answers=[answer("𠮷", 0)]), context=CHINESE + "😀𠮷")))
    assert [q.answers[0].start for q in data.paragraphs[0].questions] == [8, 13, 21]
    assert data.moved_answers == 2
    found = parse(DRCD)
    assert found.moved_answers == 0 and not found.no_answers
    assert found.paragraphs[0].questions[0].answers == (Answer("因信稱義", 7),)


def test_training_passes_over_references_that_are_not_in_the_context():
    rows = [answer("东京", -1), answer("东京", -1), answer("横滨", 17)]
    data = parse(squad(paragraph(question(answers=rows), context=CHINESE)))
    assert data.paragraphs[0].questions[0].training_answer() == Answer("横滨", 17)
    assert data.references() == {"q1": ["东京", "东京", "横滨"]} and data.moved_answers == 0
    message = refused(squad(paragraph(question(answers=rows[:2]), context=CHINESE)))
    assert "answers[1].answer_start: expected a whole number, 0 or more, found -1" in message
    assert len(parse(squad(paragraph(question(answers=rows[:2]), context=CHINESE)), "evaluation")) == 1


def flat(value, purpose="training"):
    return parse_flat(json.dumps(value), "f.json", purpose)


def query(name="Q0", **changes):
    return {"query_id": name, "query_text": "谁开发？", "answers": ["光荣", "光荣开发"], **changes}


def test_the_list_of_cmrc_2018():
    data = flat([{"context_id": "C0", "context_text": CHINESE, "title": "战国无双3",
                  "qas": [query(), query("Q1", answers=["横滨"])]}])
    assert data.references() == {"Q0": ["光荣", "光荣开发"], "Q1": ["横滨"]}
    assert [p.title for p in data.paragraphs] == ["战国无双3"] and len(data) == 2
    assert [q.answers[0].start for q in data.paragraphs[0].questions] == [8, 17]
    assert (data.moved_answers, data.no_answers) == (0, False)


def test_offenders_in_the_list_of_cmrc_2018():
    rows = [{"context_text": CHINESE, "qas": [query(answers=["东京"]), query(), query("Q2", answers=[]),
                                              query("Q3", answers=[""]), {"query_id": "Q4", "answers": ["光荣"]}, 7]},
            {"context_text": "", "qas": {}}]
    with pytest.raises(UserError) as caught:
        flat(rows)
    for words in ('item 1.qas[0].answers[0]: expected a text that occurs in', "item 1.qas[1].query_id: expected an id",
                  "item 1.qas[2].answers: expected a list of at least one text", "item 1.qas[3].answers[0]: expected a",
                  "item 1.qas[4].query_text: ", "item 1.qas[5]: expected an object", "item 2.context_text: ",
                  "item 2.qas: expected a list"):
        assert words in str(caught.value)


def test_flat_records_without_answers_have_none():
    row = {"id": "a", "context": "Rome is old.", "question": "Who?", "answers": {"text": [], "answer_start": []}}
    data = flat([row])
    assert data.no_answers and data.references() == {"a": []}
    with pytest.raises(UserError, match="at least one answer, or is_impossible"):
        flat([{**row, "is_impossible": False}])


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
