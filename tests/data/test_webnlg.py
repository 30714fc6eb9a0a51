from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.jsonl import PromptData
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data, resolve_data
from jittor_lora.data.webnlg import SEEN, is_webnlg, parse_webnlg
from jittor_lora.errors import UserError
from needs import needs_nlg, official
from triple_files import entry, webnlg, webnlg_towns

RUNWAY = [("Adolfo_Suárez_Airport", "runwayName", '"14L/32R"'), ("Madrid", "leader : Name", "A | B")]


def parse(*entries, purpose="training"):
    return parse_webnlg(json.dumps(webnlg(*entries), ensure_ascii=False), "dev.json", purpose)


def refused(content, purpose="training"):
    with pytest.raises(UserError) as caught:
        parse_webnlg(content if isinstance(content, str) else json.dumps(content), "dev.json", purpose)
    return str(caught.value)


def test_triples_become_a_prompt_and_good_texts_its_completions():
    data = parse(entry(RUNWAY, "Its runway is 14L/32R.", "toFix: no", " Spaces are kept. "))
    prompt, = data.prompts
    assert prompt.text == 'Adolfo_Suárez_Airport : runwayName : "14L/32R" | Madrid : leader : Name : A | B ||'
    assert [(c.id, c.text) for c in prompt.completions] == [("1/1", " Its runway is 14L/32R."),
                                                            ("1/3", "  Spaces are kept. ")]
    assert data.references() == {"1": ["Its runway is 14L/32R.", "Spaces are kept."]}
    assert describe_data(data) == "WebNLG, 2 completions of 1 prompt; left out: 1 text not marked good"


def test_categories_of_the_training_set_are_seen():
    one, other = ("a", "b", "c"), ("d", "e", "f")
    data = parse(entry([one], "x", category="Politician"), entry([other], "y", category="Airport"),
                 entry([other, one], "z", category="Athlete"))
    assert data.groups() == {"seen": ("2",), "unseen": ("1", "3")}
    assert describe_data(data) == "WebNLG, 3 completions of 3 prompts, 1 seen, 2 unseen"
    assert parse(*(entry([(name, "b", "c")], "x", category=name) for name in SEEN)).groups() == {} and len(SEEN) == 10


def test_equal_triples_are_one_prompt():
    data = parse(entry([("a", "b", "c")], "x"), entry([("a", "B", "c")], "y"), entry([("a", "b", "c")], "z", "x"))
    assert data.references() == {"1": ["x", "z", "x"], "2": ["y"]}
    assert [c.id for c in data.prompts[0].completions] == ["1/1", "3/1", "3/2"]


def test_entries_without_a_good_text_are_prompts_alone():
    entries = [entry([("a", "b", "c")], "toFix: x", " "), entry([("d", "e", "f")], "y"), entry([("g", "h", "i")])]
    for purpose in ("training", "evaluation"):
        data = parse(*entries, purpose=purpose)
        assert data.references() == {"2": ["y"]} and data.left_out == "1 text not marked good, 1 text empty"
    assert parse(*entries, purpose="prompts").references() == {"1": [""], "2": ["y"], "3": [""]}
    unlabelled = {key: value for key, value in entries[1].items() if key != "lexicalisations"}
    assert parse(unlabelled, purpose="prompts").references() == {"1": [""]}
    assert "entry 1, lexicalisations: expected a list" in refused(webnlg(unlabelled))
    assert "no texts in its 2 entries (1 text not marked good, 1 text empty)" in refused(
        webnlg(entries[0], entries[2]))
    assert "no texts in its 0 entries." in refused(webnlg())


def test_every_malformed_entry_is_named():
    good = entry([("a", "b", "c")], "x")
    wrong = [entry([], "x"), {**good, "modifiedtripleset": [{"subject": "a", "object": "c"}]},
             {**good, "modifiedtripleset": [["a", "b", "c"]]}, entry([("a", "b", 10**30)], "x"),
             {**good, "category": None}, {**good, "lexicalisations": {"lex": "x"}}, {**good, "lexicalisations": ["x"]},
             {**good, "lexicalisations": [{"comment": "good"}]}, {key: good[key] for key in ("category", "xml_id")}]
    said = refused(webnlg(good, *wrong))
    assert "10 places are not as expected" in said and "entry 1," not in said and len(said) < 3000
    for number in range(2, 11):
        assert f"entry {number}, " in said
    assert "entry 3, modifiedtripleset[0]: expected a triple of subject, relation, object, found an object with" in said
    assert "entry 5, modifiedtripleset[0], object: expected a text, found 1000" in said
    file = webnlg(good, good)
    file["entries"] += [good, {"1": good}, {}, {"4": good, "5": good}, {"6": []}, 7]
    said = refused(file)
    assert "6 places" in said and "entry 4, id: expected an id not used before (it is in entry 1)" in said
    assert "entries: expected a list, found an object" in refused({"entries": {"1": good}})


@pytest.mark.parametrize("text", ['{"entries": [', '{"entries": []} x', '{"entries": [], "entries": []}',
                                  '{"entries": [NaN]}', '{"entries": [{"1": {"category": "\\ud800"}}]}'])
def test_broken_files_are_refused(text):
    assert is_webnlg(text) or "} x" in text
    assert re.search("expected WebNLG's JSON|entry 1, category: expected a text", refused(text))


def test_the_format_is_told_by_the_content(tmp_path):
    path = tmp_path / "dev"
    for text in (json.dumps(webnlg_towns(3)), json.dumps({"version": 1, **webnlg_towns(3)}, indent=1),
                 "\ufeff\n" + json.dumps(webnlg_towns(3))):
        path.write_text(text, encoding="utf-8")
        assert describe_data(load_data(str(path))) == "WebNLG, 6 completions of 3 prompts, 2 seen, 1 unseen"
    with pytest.raises(UserError, match="a file in the format of WebNLG has no columns"):
        load_data(str(path), columns={"prompt": "a"})
    for text in ('{"prompt": "entries", "completion": "b", "entries": 3}', '{"prompt": "a", "completion": "b", '
                 '"entries": []}\n{"prompt": "c", "completion": "d"}'):
        path.write_text(text)
        assert load_data(str(path)).format == ""


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) |
                    st.dictionaries(st.sampled_from(["1", "category", "modifiedtripleset", "lexicalisations", "lex",
                                                     "subject", "property", "object"]), inner, max_size=4)))
def test_any_entries_are_read_or_refused(entries):
    for purpose in ("training", "prompts"):
        try:
            assert isinstance(parse_webnlg(json.dumps({"entries": entries}), "dev.json", purpose), PromptData)
        except UserError:
            pass


@needs_nlg
def test_the_whole_development_file():
    """872 entries and 2,268 texts as published; 10 of these are not good, which leaves one entry without a text, and
    two entries have the same triples."""
    path = official("webnlg-dev")
    assert resolve_data("webnlg-dev", cache=path.parent) == path  # its size and checksum are right
    data = load_data(str(path), "dev", "evaluation")
    assert describe_data(data) == "WebNLG, 2,258 completions of 870 prompts; left out: 10 texts not marked good"
    assert len(load_data(str(path), purpose="prompts").prompts) == 871
    assert {prompt.group for prompt in data.prompts} == {"seen"}
    assert data.prompts[1].text == "Aarhus_Airport : runwayLength : 2702.0 ||"
    assert data.references()["2"] == ["Aarhus Airport's runway length is 2702.0.",
                                      "The Aarhus Airport has a runway length of 2702.0."]
    converted: dict[str, list[str]] = {}
    for context, text in _converted(json.loads(path.read_text(encoding="utf-8"))["entries"]):
        converted.setdefault(f"{context} ||", []).append(f" {text}")
    assert {p.text: [c.text for c in p.completions] for p in data.prompts} == converted


def _converted(entries):
    """(context, completion) as format_converting_webnlg.py of the LoRA paper writes them, in its order."""
    for number, wrapped in enumerate(entries, 1):
        found = wrapped[str(number)]
        context = ""
        for i, triple in enumerate(found["modifiedtripleset"]):
            context += (" | " if i else "") + "{subject} : {property} : {object}".format(**triple)
        yield from ((context, text["lex"]) for text in found["lexicalisations"] if text["comment"] == "good")
