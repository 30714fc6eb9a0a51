"""Alpaca's instructions with their inputs, outputs, systems and histories."""

from __future__ import annotations

import json

import pytest

from conversation_files import turns
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError


@pytest.fixture
def load(tmp_path):
    def load(*rows, **options):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(rows))
        return load_data(str(path), **options)
    return load


@pytest.mark.parametrize("row, expected", [
    ({"instruction": "a", "output": "b"}, turns("a", "b")),
    ({"instruction": "a", "input": "i", "output": "b"}, turns("a\ni", "b")),
    ({"instruction": "a", "input": " ", "output": "b", "text": "### Instruction: …"}, turns("a", "b")),
    ({"instruction": "a", "input": None, "output": "b", "history": None, "system": None}, turns("a", "b")),
    ({"instruction": "", "input": "i", "output": "b"}, turns("i", "b")),
    ({"instruction": "a", "output": "b", "history": [["h", "g"], ["i", "j"]], "system": "s"},
     turns("h", "g", "i", "j", "a", "b", system="s")),
])
def test_rows(load, row, expected):
    assert load(row).conversations[0].turns == expected


def test_an_output_is_optional_in_prompts(load):
    for row in ({"instruction": "a"}, {"instruction": "a", "input": "", "output": ""}):
        assert load(row, purpose="prompts").conversations[0].turns == turns("a")
    with pytest.raises(UserError, match="item 1, output: expected a text that is not empty, found nothing"):
        load({"instruction": "a", "input": ""})


@pytest.mark.parametrize("row, message", [
    ({"instruction": "", "input": "", "output": "b"}, "item 1, instruction: expected a text that is not empty"),
    ({"instruction": 3, "output": "b"}, "item 1, instruction: expected a text that is not empty, found 3"),
    ({"instruction": "a", "input": 5, "output": "b"}, "item 1, input: expected a text, found 5"),
    ({"instruction": "a", "output": ["b"]}, "item 1, output[0]: expected a part"),
    ({"instruction": "a", "output": "b", "system": {}}, "item 1, system: expected a text, found an empty object"),
    ({"instruction": "a", "output": "b", "history": "x"}, "item 1, history: expected a list of [question, answer]"),
    ({"instruction": "a", "output": "b", "history": [["x"]]}, "item 1, history[0]: expected [question, answer]"),
    ({"instruction": "a", "output": "b", "history": [["x", ""]]}, "item 1, history[0][1]: expected a text that is not"),
])
def test_what_is_refused(load, row, message):
    with pytest.raises(UserError) as caught:
        load(row)
    assert message in str(caught.value)
