"""OpenAI's messages, and TRL's prompt and completion with messages."""

from __future__ import annotations

import json

import pytest

from conversation_files import message, messages, turns
from jittor_lora.data.conversations import Turn
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError

USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.fixture
def load(tmp_path):
    def load(*rows, **options):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return load_data(str(path), **options)
    return load


@pytest.fixture
def refused(load):
    def refused(*rows, **options) -> str:
        with pytest.raises(UserError) as caught:
            load(*rows, **options)
        return str(caught.value)
    return refused


@pytest.mark.parametrize("name, role", [
    ("developer", "system"), ("System", "system"), ("human", "user"), ("USER", "user"), ("prompter", "user"),
    ("gpt", "assistant"), ("chatgpt", "assistant"), ("bing", "assistant"), ("bard", "assistant"),
    ("model", "assistant")])
def test_names_of_roles(load, name, role):
    rows = {"system": [{"role": name, "content": "x"}, USER, BOT], "user": [{"role": name, "content": "x"}, BOT],
            "assistant": [USER, {"role": name, "content": "x"}]}[role]
    found = load({"messages": rows}).conversations[0].turns
    assert next(turn.role for turn in found if turn.text == "x") == role


def test_weights_say_what_is_learnt(load):
    row = {"messages": [USER, {**BOT, "weight": 0}, USER, {**BOT, "weight": 1}, USER, {**BOT, "weight": None}]}
    data = load(row)
    assert [turn.scored for turn in data.conversations[0].turns if turn.role == "assistant"] == [False, True, True]
    assert describe_data(data) == "messages, 1 conversation, 3 turns of the assistant, 1 of them not learnt"


def test_all_of_weight_0_cannot_be_learnt_but_evaluated(load, refused):
    row = {"messages": [USER, {**BOT, "weight": 0}]}
    assert "line 1: expected a turn of the assistant with weight 1, to learn, found 0" in refused(row)
    assert len(load(row, purpose="evaluation")) == len(load(row, purpose="prompts")) == 1


def test_a_last_question_is_left_out_and_said(load):
    rows = messages(turns("a", "b", "c")), messages(turns("d", "e"))
    data = load(*rows)
    assert [one.turns for one in data.conversations] == [turns("a", "b"), turns("d", "e")]
    assert describe_data(data).endswith("; 1 last turn of a user left out, as no answer follows")
    assert data.subset(1, 0).unanswered == data.only(["1"]).unanswered == 1
    asked = load(*rows, purpose="prompts")
    assert asked.conversations[0].turns == turns("a", "b", "c") and asked.unanswered == 0


def test_a_question_alone_is_a_prompt_only(load, refused):
    row = messages(turns("a", system=""))
    assert load(row, purpose="prompts").conversations[0].turns == turns("a", system="")
    for purpose in ("training", "evaluation"):
        assert "line 1: expected a turn of the assistant, found nothing" in refused(row, purpose=purpose)


def test_nulls_and_unknown_keys_are_nothing(load):
    row = {"messages": [{**USER, "name": "x", "tool_calls": None}, {**BOT, "refusal": None, "function_call": None}],
           "tools": [], "functions": None, "images": [], "source": "web"}
    assert load(row).conversations[0].turns == turns("a", "b")


@pytest.mark.parametrize("given, message", [
    ([], "messages: expected a list of turns, found a list of 0"),
    ({"role": "user"}, 'messages: expected a list of turns, found an object with "role"'),
    ("hi", 'messages: expected a list of turns, found "hi"'),
    (["hi"], 'messages[0]: expected a turn, an object with role and content, found "hi"'),
    ([USER, {"content": "b"}], "messages[1].role: expected system, user or assistant (--columns role.user"),
    ([USER, {**BOT, "role": 7}], "messages[1].role: expected system, user or assistant (--columns role.user=… says "
     "what a file calls them), found 7"),
    ([{**USER, "role": "USR"}, BOT], "found \"USR\""),
    ([USER, {**BOT, "content": ""}], 'messages[1].content: expected a text that is not empty, found ""'),
    ([USER, {**BOT, "content": " \n"}], "messages[1].content: expected a text that is not empty"),
    ([USER, {**BOT, "content": None}], "messages[1].content: expected a text that is not empty, found nothing"),
    ([USER, {**BOT, "content": 4}], "messages[1].content: expected a text that is not empty, found 4"),
    ([USER, {**BOT, "content": []}], "messages[1].content: expected a text that is not empty"),
    ([USER, {**BOT, "content": ["b"]}], 'messages[1].content[0]: expected a part {"type": "text"'),
    ([USER, {**BOT, "content": [{"type": "text", "text": 3}]}], "content[0].text: expected a text, found 3"),
    ([{**USER, "content": [{"type": "image_url"}]}, BOT], 'messages[0].content[0]: expected a part {"type": "text", '
     '"text": "…"}, found "image_url"'),
    ([USER, {**BOT, "content": None, "tool_calls": [{}]}], "messages[1].tool_calls: expected nothing"),
    ([USER, {**BOT, "function_call": {"name": "f"}}], "messages[1].function_call: expected nothing"),
    ([USER, {**BOT, "reasoning_content": "so"}], "messages[1].reasoning_content: expected nothing: write what"),
    ([USER, {"role": "tool", "content": "x"}, BOT], '[1].role: expected system, user or assistant, found "tool"'),
    ([USER, {"role": "function", "content": "x"}, BOT], 'found "function"'),
    ([USER, {**BOT, "weight": 0.5}], "messages[1].weight: expected 0 or 1, found 0.5"),
    ([USER, {**BOT, "weight": "1"}], "messages[1].weight: expected 0 or 1"),
    ([BOT, USER, BOT], 'messages[0]: expected a turn of the user, found "assistant"'),
    ([USER, USER, BOT], 'messages[1]: expected a turn of the assistant, found "user"'),
    ([USER, BOT, BOT], 'messages[2]: expected a turn of the user, found "assistant"'),
    ([USER, {"role": "system", "content": "x"}, BOT], 'messages[1]: expected a turn of the assistant, found "system"'),
    ([{"role": "system", "content": "x"}] * 2 + [USER, BOT], '[1]: expected a turn of the user, found "system"'),
    ([{"role": "system", "content": "x"}], 'line 2: expected a turn of the user, found "system"'),
])
def test_what_is_refused(refused, given, message):
    found = refused({"messages": [USER, BOT]}, {"messages": given})
    assert message in found and "1 place is not as expected" in found
    assert "tools, functions, images and audio are not supported" in found


@pytest.mark.parametrize("more", [{"tools": [{"type": "function"}]}, {"functions": [1]}, {"images": ["a.png"]}])
def test_tools_and_images_of_a_row_are_refused(refused, more):
    assert f"line 1, {next(iter(more))}: expected nothing" in refused({"messages": [USER, BOT], **more})


def test_only_the_completion_of_two_parts_is_learnt(load, refused):
    row = {"prompt": [{"role": "system", "content": "s"}, USER, BOT, {**USER, "content": "c"}],
           "completion": [{**BOT, "content": "d"}]}
    data = load(row)
    assert data.conversations[0].turns == (Turn("system", "s", False), Turn("user", "a", False),
                                           Turn("assistant", "b", False), Turn("user", "c", False),
                                           Turn("assistant", "d", True))
    assert data.references() == {"1": ["d"]}
    asked = load({"prompt": [USER]}, purpose="prompts")
    assert [turn.text for turn in asked.conversations[0].turns] == ["a"]
    assert "line 1, completion: expected a list of turns, found nothing" in refused({"prompt": [USER]})
    assert 'completion: expected a list of turns, found "b"' in refused({"prompt": [USER], "completion": "b"})
    assert 'completion[0]: expected a turn of the assistant, found "user"' in refused(
        {"prompt": [USER, BOT], "completion": [USER, BOT]})


def test_prompts_and_completions_stay_texts(load):
    assert load({"prompt": "[1]", "completion": "{}"}).prompts[0].text == "[1]"


def test_two_texts_for_the_system(load, refused):
    assert load({**messages(turns("a", "b")), "system": "s"}).conversations[0].turns == turns("a", "b", system="s")
    assert "line 1, system: expected one text for the system" in refused(
        {"messages": [message(turn) for turn in turns("a", "b", system="s")], "system": "s"})
