from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.jsonl import Completion, Prompt, PromptData, parse_jsonl, read_jsonl
from jittor_lora.data.text_file import SHOWN
from jittor_lora.errors import UserError


def parse(*rows, purpose="training"):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    return parse_jsonl("\n".join(lines), "f.jsonl", purpose)


def refused(*rows, purpose="training"):
    with pytest.raises(UserError) as caught:
        parse(*rows, purpose=purpose)
    return str(caught.value)


def test_equal_prompts_are_merged_in_order_of_first_appearance():
    data = parse(
        {"prompt": "a", "completion": " 1"},
        "",
        {"prompt": "b", "completion": " 2", "id": "two", "note": [1]},
        {"prompt": "a", "completion": " 3", "id": 30},
    )
    found = [(p.id, p.text, [(c.id, c.text) for c in p.completions]) for p in data.prompts]
    assert found == [("1", "a", [("1", " 1"), ("30", " 3")]), ("two", "b", [("two", " 2")])]
    assert len(data) == 3
    assert data.references() == {"1": ["1", "3"], "two": ["2"]}


@given(st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9)), min_size=1, max_size=9))
def test_texts_come_back_as_they_were_written(pairs):
    data = parse(*({"prompt": p, "completion": c} for p, c in pairs))
    found = sorted((int(c.id), p.text, c.text) for p in data.prompts for c in p.completions)
    assert [(p, c) for _, p, c in found] == pairs


def test_windows_line_endings_and_byte_order_mark(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b", "completion": "c"}\r\n\r\n')
    assert read_jsonl(path).prompts[0].text == "a\u2028b"


def test_all_wrong_lines_are_named():
    message = refused(
        {"prompt": "a", "completion": "b"},
        '{"prompt": "a", ',
        ["a"],
        {"prompt": "", "completion": 7},
        {"text": "a"},
        {"prompt": "a", "completion": "b", "id": "1"},
        {"prompt": "a", "completion": "b", "id": None},
        {"prompt": "a", "completion": "\ud800"},
        '{"prompt": "a", "completion": NaN}',
    )
    for words in (
        "f.jsonl: 10 places are not as expected.",
        "line 2: expected a JSON object (the JSON text ends too early",
        'line 3: expected an object with "prompt" and "completion", found a list of 1',
        'line 4, prompt: expected "prompt" with a text that is not empty, found ""',
        "line 4, completion: ",
        'line 5, prompt: expected "prompt" with a text that is not empty, found an object with "text"',
        "line 6, id: expected an id not used before (it is in line 1)",
        "line 7, id: ",
        "line 8, completion: ",
        "line 9: expected a JSON object (NaN is not JSON)",
    ):
        assert words in message


def test_many_wrong_lines_fit_on_a_screen():
    message = refused(*["7"] * 100_000)
    assert "100,000 places" in message
    assert len(message.splitlines()) == SHOWN + 3


def test_completions_are_optional_in_prompts():
    assert parse({"prompt": "a"}, purpose="prompts").references() == {"1": [""]}
    assert "completion" in refused({"prompt": "a"}, purpose="evaluation")


def test_no_rows():
    assert "no rows" in refused("", "")


def test_subsets_are_exact_nested_and_in_order():
    data = parse(*({"prompt": str(i % 7), "completion": str(i)} for i in range(30)))
    ids, smaller = [c.id for p in data.prompts for c in p.completions], set()
    for count in (1, 5, 12, 30, 99):
        part = [c.id for p in data.subset(count, seed=0).prompts for c in p.completions]
        assert len(part) == min(count, 30)
        assert smaller <= set(part)
        assert part == [i for i in ids if i in set(part)]
        smaller = set(part)


def test_groups_of_prompts():
    prompts = tuple(Prompt(name, name, (Completion(name, "x"),), group)
                    for name, group in (("a", "unseen"), ("b", "seen"), ("c", "unseen")))
    data = PromptData("data", prompts, "WebNLG", "1 empty text")
    assert data.groups() == {"seen": ("b",), "unseen": ("a", "c")} and list(data.groups()) == ["seen", "unseen"]
    assert data.only("ab").groups() == {"seen": ("b",), "unseen": ("a",)}
    assert data.only("ac").groups() == {} == parse({"prompt": "a", "completion": "b"}).groups()
    assert data.only("ab").format == data.subset(2, 0).format == "WebNLG" and data.subset(3, 0) == data
