"""`--columns`: our names for a file's fields."""

from __future__ import annotations

import json

import pytest

from conversation_files import CONTAINERS, turns
from jittor_lora.cli.main import main
from jittor_lora.data.columns import NAMES, Columns, read_columns, wrong_columns
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from jittor_lora.settings.curve import CurveConfig
from jittor_lora.settings.run import RunConfig

DIALOG = [{"speaker": "USER", "said": "a"}, {"speaker": "Bot", "said": "b"}]
NAMED = {"messages": "dialog", "role": "speaker", "content": "said", "role.user": "USER", "role.assistant": "Bot"}


@pytest.fixture
def load(tmp_path):
    def load(rows, columns, container="lines", **options):
        path = tmp_path / "data"
        path.write_bytes(CONTAINERS[container](rows))
        return load_data(str(path), columns=columns, **options)
    return load


@pytest.fixture
def refused(load):
    def refused(rows, columns, **options) -> str:
        with pytest.raises(UserError) as caught:
            load(rows, columns, **options)
        return str(caught.value)
    return refused


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("row, columns, expected", [
    ({"dialog": DIALOG}, NAMED, turns("a", "b")),
    ({"messages": "x", "dialog": DIALOG, "sys": "s"}, {**NAMED, "system": "sys"}, turns("a", "b", system="s")),
    ({"conversations": DIALOG}, {key: NAMED[key] for key in NAMED if key != "messages"}, turns("a", "b")),
    ({"ask": "a", "say": "b", "more": "c"}, {"instruction": "ask", "output": "say", "input": "more"},
     turns("a\nc", "b")),
    ({"instruction": "a", "say": "b"}, {"output": "say"}, turns("a", "b")),
])
def test_conversations(load, container, row, columns, expected):
    assert load([row], columns, container).conversations[0].turns == expected


@pytest.mark.parametrize("container", CONTAINERS)
def test_prompts_whatever_else_the_rows_have(load, container):
    row = {"query": "[1]", "reply": "b", "messages": "[]", "prompt": "not this", "key": 9}
    data = load([row], {"prompt": "query", "completion": "reply", "id": "key"}, container)
    assert [(p.id, p.text, p.completions[0].text) for p in data.prompts] == [("9", "[1]", "b")]
    swapped = load([{"prompt": "a", "completion": "b"}], {"prompt": "completion", "completion": "prompt"}, container)
    assert (swapped.prompts[0].text, swapped.prompts[0].completions[0].text) == ("b", "a")


def test_questions(load):
    row = {"passage": "Rome is old.", "q": "How?", "a": "old"}
    assert load([row], {"context": "passage", "question": "q", "answer": "a"}).references() == {"1": ["old"]}


def test_a_field_may_be_missing_in_some_rows(load, refused):
    rows = [{"query": "a", "reply": "b"}, {"query": "c", "reply": "d", "name": "x"}]
    columns = {"prompt": "query", "completion": "reply", "id": "name"}
    assert [p.id for p in load(rows, columns).prompts] == ["1", "x"]
    found = refused([*rows, {"query": "c"}], columns)
    assert "line 3, completion: expected" in found
    assert found.endswith("With --columns prompt=query,completion=reply,id=name.")


@pytest.mark.parametrize("row, columns, messages", [
    ({"query": "a", "reply": "b"}, {"prompt": "querry", "completion": "answer"}, (
        "prompt=querry: no such field; did you mean query?", "completion=answer: no such field\n",
        "Its fields: query, reply.")),
    ({"dialog": DIALOG}, {**NAMED, "role": "speakr", "content": "text"}, (
        "role=speakr: no turn has such a field; did you mean speaker?", "content=text: no turn has such a field\n",
        "Its fields: dialog.\nThose of its turns: speaker, said.")),
    ({"dialog": DIALOG}, {**NAMED, "messages": "dialgo"}, ("messages=dialgo: no such field; did you mean dialog?",)),
    ({"dialog": DIALOG}, {"messages": "dialog", "role": "speaker", "content": "said", "role.user": "Bot"}, (
        'messages[1]: expected a turn of the assistant, found "user"',)),
    ({"q": "a", "r": "b"}, {"prompt": "q", "output": "r"}, ("no format has all of these", "\n  Alpaca: instruction, ")),
    ({"q": "a", "completion": "b"}, {"role": "q"}, ("role=q: no turn has such a field",)),
])
def test_what_is_refused(refused, row, columns, messages):
    found = refused([row], columns)
    for message in messages:
        assert message in found


def test_squad_json_has_no_columns(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('{"data": []}')
    with pytest.raises(UserError, match="--columns prompt=q has no effect, as a file in the format of SQuAD"):
        load_data(str(path), columns={"prompt": "q"})
    with pytest.raises(UserError, match="has no effect"):
        load_data("e2e-dev", columns={"prompt": "q"})


@pytest.mark.parametrize("text, problem", [
    ("prompt=q,completion=a", None),
    (" messages = dialog , role.user=USER ", None),
    ("promt=q", "did you mean prompt?"),
    ("from=speaker", "did you mean role?"),
    ("user=USER", "did you mean role.user?"),
    ("prompt", "prompt: expected the file's field, as in prompt=FIELD"),
    ("prompt=", "prompt: expected"),
    ("prompt=\x07", "prompt: expected"),
    ("", "'' is none of the names"),
    ("prompt=a,completion=a", "the field 'a' is given twice"),
])
def test_text_and_settings(text, problem):
    columns = read_columns(text)
    if problem is None:
        assert wrong_columns(columns) is None
        for settings in (RunConfig, CurveConfig):
            assert settings(columns=text).columns == settings(columns=columns).columns == columns
    else:
        assert problem in wrong_columns(columns)
        with pytest.raises(UserError, match="columns: "):
            RunConfig(columns=text)


def test_a_recipe_may_hold_them_and_a_run_keeps_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text in ("columns: prompt=q,completion=a\n", "columns: {prompt: q, completion: a}\n",
                 "columns:\n  prompt: q\n  completion: a\n"):
        recipe.write_text(text)
        config = RunConfig.resolve(str(recipe))
        assert config.columns == {"prompt": "q", "completion": "a"}
        assert config.differences(RunConfig())[0].startswith(f"columns ({recipe}, line 1): None in the run, now ")
    assert RunConfig(columns="none").columns is None


def test_every_name_is_one_of_a_format():
    from jittor_lora.data.formats import ROW_FORMATS

    assert {name for form in ROW_FORMATS for name in form.names} == set(NAMES)
    assert not Columns() and str(Columns({"prompt": "q", "id": "n"})) == "prompt=q,id=n"


@pytest.mark.parametrize("verb", ["train", "inspect", "evaluate", "curve", "compare", "quickstart"])
def test_the_flag_is_explained(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "--columns NAME=FIELD,..." in capsys.readouterr().out


def test_inspect_with_columns(tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"query": "a"}))
    assert main(["inspect", "--data", str(path), "--columns", "prompt=qurey,completion=reply"]) == 2
    assert "prompt=qurey: no such field; did you mean query?" in capsys.readouterr().err
