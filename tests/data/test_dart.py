from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.dart import parse_dart
from jittor_lora.data.jsonl import PromptData
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data, resolve_data
from jittor_lora.errors import UserError
from needs import needs_nlg, needs_parquet, official
from triple_files import dart, dart_towns

TITLED = [("[TABLECONTEXT]", "[TITLE]", "Bogotá"), ("Bogotá", "OFFICIAL_POPULATION", "5,457,831")]


def parse(*entries, purpose="training"):
    return parse_dart(json.dumps(list(entries)), "dev.json", purpose)


def refused(*entries, purpose="training"):
    with pytest.raises(UserError) as caught:
        parse(*entries, purpose=purpose)
    return str(caught.value)


def test_relations_are_in_lower_case():
    data = parse(dart(TITLED, "It has 5,457,831 people.", "Many."), dart([("a", "Is", "B")], "x"))
    assert [p.text for p in data.prompts] == [
        "[TABLECONTEXT] : [title] : Bogotá | Bogotá : official_population : 5,457,831 ||", "a : is : B ||"]
    assert [(c.id, c.text) for c in data.prompts[0].completions] == [("1/1", " It has 5,457,831 people."),
                                                                     ("1/2", " Many.")]
    assert data.groups() == {} and describe_data(data) == "DART, 3 completions of 2 prompts"


def test_equal_triples_are_one_prompt():
    assert parse(dart([("a", "b", "c")], "x"), dart([("a", "B", "c")], "y"), dart([("A", "b", "c")], "z")) \
        .references() == {"1": ["x", "y"], "3": ["z"]}


def test_entries_without_a_text_are_prompts_alone():
    entries = [dart([("a", "b", "c")]), dart([("d", "e", "f")], "", "y")]
    assert parse(*entries).references() == {"2": ["y"]} and parse(*entries).left_out == "1 text empty"
    assert parse(*entries).prompts[0].completions[0].id == "2/2"
    assert parse(*entries, purpose="prompts").references() == {"1": [""], "2": ["y"]}
    assert "no texts in its 1 entries" in refused(entries[0])


def test_every_malformed_entry_is_named():
    good = dart([("a", "b", "c")], "x")
    said = refused(good, dart([], "x"), dart([("a", "b")], "x"), dart([("a", "b", "c", "d")], "x"),
                   dart([("a", 5, "c")], "x"), dart([("a", "b", None)], "x"), {**good, "tripleset": "a"},
                   {**good, "annotations": ["x"]}, {**good, "annotations": None}, {**good, "annotations": [{}]},
                   {"annotations": []}, 7)
    assert "2 places" in refused(dart([("a", "b"), ("a", "b", "c"), ("a", "b", 5)], "x"))
    assert "11 places are not as expected" in said and "item 1," not in said
    for number in range(2, 12):
        assert f"item {number}, " in said
    assert "item 3, tripleset[0]: expected a triple of subject, relation, object, found a list of 2" in said
    assert "item 5, tripleset[0], relation: expected a text, found 5" in said and "item 12: expected an object" in said


def test_an_array_and_lines_are_read(tmp_path):
    path = tmp_path / "dev"
    for text in (json.dumps(dart_towns(3), indent=2), "\n".join(map(json.dumps, dart_towns(3)))):
        path.write_text(text)
        assert describe_data(load_data(str(path))) == "DART, 6 completions of 3 prompts"
    path.write_text(json.dumps(dart_towns(3))[:-9])
    with pytest.raises(UserError, match="the whole file: expected a JSON array"):
        load_data(str(path))
    path.write_text("\n".join([json.dumps(dart_towns(1)[0]), '{"prompt": "a", "completion": "b"}']))
    with pytest.raises(UserError, match="line 2, tripleset: expected a list of triples .* found nothing"):
        load_data(str(path))


@needs_parquet
def test_parquet_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(dart_towns(3)), tmp_path / "dev.parquet")
    assert load_data(str(tmp_path / "dev.parquet")).prompts[2].text == "Town_2 : houses : 17 | Town_2 : river : R2 ||"


VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))


@given(st.lists(st.fixed_dictionaries({}, optional={
    "tripleset": VALUES,
    "annotations": st.lists(st.none() | st.dictionaries(st.just("text"), st.none() | st.text(max_size=5)), max_size=2),
    "id": st.integers(0, 3) | st.none()}), max_size=3))
def test_any_entries_are_read_or_refused(entries):
    for purpose in ("training", "prompts"):
        try:
            assert isinstance(parse(*entries, purpose=purpose), PromptData)
        except UserError:
            pass


@needs_nlg
def test_the_whole_development_file():
    """2,768 sets of triples and 6,980 texts, as published; some sets occur twice."""
    path = official("dart-dev")
    assert resolve_data("dart-dev", cache=path.parent) == path  # its size and checksum are right
    entries = json.loads(path.read_text(encoding="utf-8"))
    data = load_data(str(path), "dev", "evaluation")
    assert len(entries) == 2768 and describe_data(data) == "DART, 6,980 completions of 2,721 prompts"
    converted = {}
    for entry in entries:
        context = ""
        for i, (subject, relation, what) in enumerate(entry["tripleset"]):
            context += (" | " if i else "") + f"{subject} : {relation.lower()} : {what}"
        converted.setdefault(f"{context} ||", []).extend(f" {each['text']}" for each in entry["annotations"])
    assert {p.text: [c.text for c in p.completions] for p in data.prompts} == converted
