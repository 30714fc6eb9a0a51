"""`generate`: what is asked of the model, and what is printed where."""

from __future__ import annotations

import io
import json
import sys
import types

import pytest

from jittor_lora.cli.main import main
from jittor_lora.data.prompting import Prompting
from jittor_lora.errors import UserError


class Echo:
    """Stands for the generator: answers with what it was asked."""

    def __init__(self, model, tokenizer, template, chat, ensemble):
        self.template, self.chat = template, chat

    def groups(self, texts):
        return texts

    def chats(self, conversations):
        return [("chat", " ".join(f"{turn.role}:{turn.text}" for turn in turns)) for turns in conversations]

    def continue_groups(self, groups, decoding, trim, on_text=lambda index, text: None):
        return [self.continued(index, *group, decoding, on_text) for index, group in enumerate(groups)]

    def continued(self, index, context, text, decoding, on_text):
        if text == "too long":
            raise UserError("Shorten the context.")
        if context in (None, "chat"):
            pieces = [f"<{text}|", f"{decoding.max_new_tokens}|{decoding.stop!r}>"]
        else:
            pieces = [f"{context}/{text}|{decoding.stop!r}|{decoding.sampling.temperature} "]
        for piece in pieces:
            on_text(index, piece)
        return "".join(pieces)


@pytest.fixture
def learnt_conversations():
    """Whether the adapter did."""
    return False


@pytest.fixture
def loaded(monkeypatch, learnt_conversations):
    """(base, adapter, precision, base_precision) of each model loaded."""
    loaded = []
    loading = types.ModuleType("jittor_lora.session")
    model = types.SimpleNamespace(model="m", tokenizer=types.SimpleNamespace(special=("<|im_start|>",)),
                                  checkpoint=types.SimpleNamespace(generation_config=None),
                                  choose_prompting=lambda choices: Prompting(conversations=learnt_conversations),
                                  chat_encoder=lambda prompting: "encoder")
    loading.load = lambda *arguments: loaded.append(arguments) or model
    monkeypatch.setitem(sys.modules, "jittor_lora.session", loading)
    monkeypatch.setattr("jittor_lora.inference.generator.Generator", Echo)
    return loaded


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "target_modules": ["c_attn"], "base_model_name_or_path": "gpt2"}))
    return tmp_path / "a"


def test_the_continuation_alone_is_printed(loaded, capsys):
    assert main(["generate", "--base", "b", "--prompt", "x", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == "<x|3|None>\n"
    assert loaded == [("b", None, "bf16", "auto")]


def test_question(loaded, capsys):
    assert main(["generate", "--base", "b", "--context", "c", "--question", "q", "--temperature", "0.5"]) == 0
    assert capsys.readouterr().out == "c/q|'\\n'|0.5\n"


@pytest.mark.parametrize("stop, meant", [("newline", "'\\n'"), ("eos", "None"), ("END", "'END'")])
def test_stop(stop, meant, loaded, capsys):
    assert main(["generate", "--base", "b", "--prompt", "x", "--stop", stop]) == 0
    assert capsys.readouterr().out == f"<x|64|{meant}>\n"


def test_adapter_on_and_off(loaded, adapter):
    main(["generate", "--adapter", str(adapter), "--prompt", "x"])
    main(["generate", "--adapter", str(adapter), "--prompt", "x", "--no-adapter"])
    assert [(base.name, source and source.folder) for base, source, *_ in loaded] == [("gpt2", adapter), ("gpt2", None)]


def test_pieces_on_a_terminal(loaded, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["generate", "--base", "b", "--prompt", "x"]) == 0
    assert capsys.readouterr().out == "<x|64|None>\n"


def test_file(loaded, tmp_path, capsys):
    records = [{"prompt": "x", "id": 1}, {"context": "c", "question": "q"}, {"context": "c", "question": "r"}]
    (tmp_path / "f.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    assert main(["generate", "--base", "b", "--file", str(tmp_path / "f.jsonl")]) == 0
    out, err = capsys.readouterr()
    printed = [json.loads(line) for line in out.splitlines()]
    assert [{**record, "continuation": None} for record in records] == [{**r, "continuation": None} for r in printed]
    assert [r["continuation"] for r in printed] == ["<x|64|None>", "c/q|'\\n'|0.0", "c/r|'\\n'|0.0"]
    assert "3 of 3" in err


def test_file_with_offenders(loaded, tmp_path, capsys):
    lines = ['{"prompt": "x"}', "[]", '{"prompt": 3}', '{"context": "c"}', "not json", '{"question": " "}']
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    assert main(["generate", "--base", "b", "--file", str(tmp_path / "f.jsonl")]) == 2
    err = capsys.readouterr().err
    for place in ("line 2:", "line 3, prompt:", "line 4, question:", "line 5:", "line 6, context:",
                  "line 6, question:"):
        assert place in err
    assert not loaded


def test_interactive(loaded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntoo long\ntwo")))
    assert main(["generate", "--base", "b", "--interactive"]) == 0
    out, err = capsys.readouterr()
    assert out == "<one|64|None>\n<two|64|None>\n" and "Prompt: " in err and "Shorten the context." in err


def test_interactive_about_a_context(loaded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"why\n")))
    assert main(["generate", "--base", "b", "--interactive", "--context", "c"]) == 0
    assert capsys.readouterr().out == "c/why|'\\n'|0.0\n"


@pytest.mark.parametrize("arguments, message", [
    ([], "give a text to continue"),
    (["--prompt", "x", "--interactive"], "cannot be given together with interactive"),
    (["--question", "q"], "give --context"),
    (["--context", "c"], "give a text to continue"),
    (["--context", "c", "--prompt", "x"], "has no effect with --prompt"),
    (["--prompt", "x", "--top-p", "0.5"], "temperature is 0"),
    (["--prompt", "x", "--max-new-tokens", "0"], "at least 1"),
    (["--prompt", "x", "--no-chat", "--system", "s"], "has no effect without a chat"),
    (["--context", "c", "--question", "q", "--chat"], "questions about a context go into --template"),
    (["--prompt", "x", "--chat-arguments", "enable thinking"], "enable_thinking=false"),
    (["--prompt", "x", "--adapter", "nowhere"], "no such folder"),
    (["--file", "nowhere"], "nowhere: no such file"),
])
def test_mistakes(arguments, message, loaded, capsys):
    assert main(["generate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and not out and not loaded


@pytest.mark.parametrize("arguments", [["--file", "q.jsonl"], ["--file", "q.jsonl", "--samples", "2", "--beams", "2"],
                                       ["--prompt", "café 你好", "--samples", "2", "--beams", "2"]])
def test_json_on_a_terminal_that_is_not_utf_8(loaded, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"prompt": "caf\\u00e9 \\ud83c\\udf89 \\u4f60\\u597d", "id": "é"}\n',
                                      encoding="utf-8")
    monkeypatch.setattr(Echo, "continuations", lambda self, groups, decoding, count, trim: [
        [text for _, text in groups] * count], raising=False)
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
    assert main(["generate", "--base", "b", *arguments]) == 0
    sys.stdout.flush()
    rows = [json.loads(line) for line in stream.getvalue().decode("ascii").splitlines()]
    assert rows and all("café" in json.dumps(row, ensure_ascii=False) for row in rows)


def test_a_prompt_with_a_backslash_and_an_n_gets_a_note(loaded, capsys):
    assert main(["generate", "--base", "b", "--prompt", r"a\nb"]) == 0
    out, err = capsys.readouterr()
    assert out == "<a\\nb|64|None>\n" and "--prompt contains \\n, which is used literally" in err
    assert main(["generate", "--base", "b", "--prompt", "a\nb", "--stop", r"\n\n"]) == 0
    out, err = capsys.readouterr()
    assert out == "<a\nb|64|'\\n\\n'>\n" and "backslash" not in err


def test_chat_on_demand(loaded, capsys):
    assert main(["generate", "--base", "b", "--chat", "--prompt", "x", "--system", "s"]) == 0
    assert capsys.readouterr().out == "<system:s user:x|256|None>\n"
    assert main(["generate", "--base", "b", "--prompt", "x", "--system", "s"]) == 2
    assert "--system has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("learnt_conversations", [True])
def test_a_prompt_to_an_adapter_that_learnt_conversations_is_a_users_turn(loaded, capsys):
    assert main(["generate", "--base", "b", "--prompt", "x"]) == 0
    assert main(["generate", "--base", "b", "--prompt", "x", "--no-chat"]) == 0
    assert main(["generate", "--base", "b", "--context", "c", "--question", "q"]) == 0
    assert capsys.readouterr().out == "<user:x|256|None>\n<x|64|None>\nc/q|'\\n'|0.0\n"


@pytest.mark.parametrize("learnt_conversations", [True])
def test_interactive_chat_goes_on_until_an_empty_line(loaded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n\nthree\n")))
    assert main(["generate", "--base", "b", "--interactive", "--system", "s"]) == 0
    first = "<system:s user:one|256|None>"
    assert capsys.readouterr().out.splitlines() == [
        first, f"<system:s user:one assistant:{first} user:two|256|None>", "<system:s user:three|256|None>"]


def test_file_with_messages(loaded, tmp_path, capsys):
    records = [{"messages": [{"role": "user", "content": "x"}]}, {"prompt": "y"},
               {"messages": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "old"}]}]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert main(["generate", "--base", "b", "--file", str(tmp_path / "f.jsonl")]) == 0
    printed = [json.loads(line)["continuation"] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["<user:x|256|None>", "<y|64|None>", "<user:z|256|None>"]


def test_messages_with_offenders(loaded, tmp_path, capsys):
    turns = [[{"role": "assistant", "content": "x"}], [{"role": "user"}], [], [{"role": "system", "content": "s"}]]
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps({"messages": some}) for some in turns))
    assert main(["generate", "--base", "b", "--file", str(tmp_path / "f.jsonl")]) == 2
    err = capsys.readouterr().err
    assert all(f"line {number}" in err for number in range(1, 5)) and not loaded
