"""ShareGPT's conversations and the forms that share its field."""

from __future__ import annotations

import json

import pytest

from conversation_files import turns
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError

HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}


@pytest.fixture
def load(tmp_path):
    def load(*rows, **options):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(rows))
        return load_data(str(path), **options)
    return load


@pytest.mark.parametrize("row", [
    {"conversations": [HUMAN, GPT]},
    {"id": "x", "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
    {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"conversations": [{"from": "human", "content": "a"}, {"role": "gpt", "value": "b"}]},
    {"conversations": [HUMAN, {**GPT, "from": "bing"}], "system": None},
    {"conversations": [HUMAN, GPT], "system": "", "tools": "[]"[:0]},
    {"messages": [HUMAN, GPT]},
    {"conversation": [{"human": "a", "assistant": "b"}], "conversation_id": 4, "category": "x"},
    {"conversation": [{"system": "", "input": "a", "output": "b"}]},
])
def test_forms(load, row):
    assert [one.turns for one in load(row).conversations] == [turns("a", "b")]


def test_pairs_with_a_system_and_an_open_question(load):
    row = {"conversation": [{"system": "s", "input": "a", "output": "b"}, {"input": "c", "output": ""}]}
    assert load(row, purpose="prompts").conversations[0].turns == turns("a", "b", "c", system="s")
    data = load(row)
    assert data.conversations[0].turns == turns("a", "b", system="s") and data.unanswered == 1


@pytest.mark.parametrize("row, message", [
    ({"conversations": []}, "item 1, conversations: expected a list of turns, found a list of 0"),
    ({"conversations": [GPT, HUMAN, GPT]}, 'item 1, conversations[0]: expected a turn of the user, found "assistant"'),
    ({"conversations": [HUMAN, {"from": "observation", "value": "x"}, GPT]}, 'conversations[1].role: expected system, '
     'user or assistant, found "observation"'),
    ({"conversations": [HUMAN, {"from": "function_call", "value": "x"}]}, 'found "function_call"'),
    ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "conversations[1].value: expected a text that is not"),
    ({"conversations": [HUMAN, GPT], "system": 3}, "item 1, system: expected a text, found 3"),
    ({"conversations": [HUMAN, GPT], "tools": "[{}]"}, 'item 1, tools: expected nothing, found "[{}]"'),
    ({"conversation": [{"human": "a", "assistant": ""}, {"human": "c", "assistant": "d"}]},
     "item 1, conversation[0].assistant: expected a text that is not empty"),
    ({"conversation": [{"human": "a", "assistant": "b"}, 7]}, "item 1, conversation[1]: expected an object with human"),
])
def test_what_is_refused(load, row, message):
    with pytest.raises(UserError) as caught:
        load(row)
    assert message in str(caught.value)
