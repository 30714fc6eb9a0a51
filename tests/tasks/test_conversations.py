"""Conversations from file to answer: a run on them, what it leaves with the adapter, and what uses that."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.formats.training_state import read_state
from jittor_lora.inference.asking import Talk, answers
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.session import load
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.evaluate import evaluate
from jittor_lora.tasks.train import train

DATED = ("{{ strftime_now('%d %B %Y') }}\n{% for message in messages %}{{ message.role }}: {{ message.content }}"
         "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
ENDLESS = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def write(path, conversations):
    path.write_text("\n".join(json.dumps({"messages": [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * len(turns), turns)]})
        for turns in conversations))
    return str(path)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A base in `base`, and `chat.jsonl`, in a new current folder."""
    monkeypatch.chdir(tmp_path)
    small_run.make_base(tmp_path / "base")
    write(tmp_path / "chat.jsonl", [("hi", "hello", f"how many, {i}?", f"there are {i}") for i in range(6)])
    return tmp_path


def settings(**more):
    return RunConfig(**{"base": "base", "data": "chat.jsonl", "output": "run", "chat_template": "gpt2", "max_steps": 4,
                        "save_every": 2, "batch_size": 3, "lora_r": 2, "precision": "fp32", **more})


def test_the_adapter_remembers_its_template(files):
    train(settings(dev="chat.jsonl", eval_questions=2, eval_every=2))
    assert {path.name for path in (files / "run/adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base_model.json", "prompting.json", "chat_template.jinja"}
    session = load("base", "run/adapter")
    assert session.prompting.conversations and session.prompting.chat.source.count("Assistant")
    assert not session.base_prompting.conversations and session.base_prompting.chat is None
    session.save_adapter("copy")
    session = load("base", "copy")
    encoder = session.chat_encoder(session.prompting)
    turns = Talk.opened("hi").turns
    assert session.tokenizer.decode(encoder.prompt(turns)) == "User: hi\nAssistant:"
    generator = Generator(session.model, session.tokenizer, chat=encoder)
    assert isinstance(answers(generator, [Talk(turns)], Decoding(3))[0][0], str)


def test_every_verb_takes_the_template_of_the_run(files, capsys):
    train(settings())
    assert main(["generate", "--adapter", "run", "--prompt", "hi", "--max-new-tokens", "2"]) == 0
    assert main(["evaluate", "--adapter", "run", "--data", "chat.jsonl", "--output", "scores",
                 "--max-new-tokens", "4"]) == 0
    assert len(json.loads((files / "scores/predictions.json").read_text())) == 6
    assert main(["evaluate", "--base", "base", "--data", "chat.jsonl", "--output", "other"]) == 2
    assert "base has no chat template. Name one with --chat-template" in capsys.readouterr().err


def test_an_answer_ends_where_its_turn_ended_in_training(files):
    """What is trained until it is known by heart is answered, and ends there."""
    write(files / "chat.jsonl", [("ping", "pong"), ("tick", "tock")])
    train(settings(max_steps=60, learning_rate=0.02, lora_r=8, batch_size=2, lora_dropout=0.0, save_every=0))
    found = evaluate("base", "chat.jsonl", "scores", "run/adapter")
    assert found["adapter"].exact_match == 100
    assert json.loads((files / "scores/predictions.json").read_text()) == {"1": "pong", "2": "tock"}


def test_a_resumed_run_shows_the_date_of_its_start(files, monkeypatch):
    (files / "dated.jinja").write_text(DATED)

    class Long(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2020, 2, 29)

    config = settings(chat_template="dated.jinja")
    with monkeypatch.context() as patch:
        patch.setattr("jittor_lora.data.chat_template.datetime.datetime", Long)
        train(config)
    assert json.loads((files / "run/prompting.json").read_text())["date"].startswith("2020-02-29")
    whole = read_state(files / "run/checkpoints/step-00000004.safetensors")
    (files / "run/checkpoints/step-00000004.safetensors").unlink()
    train(config, resume=True)
    again = read_state(files / "run/checkpoints/step-00000004.safetensors")
    assert all(np.array_equal(array, again.arrays[name]) for name, array in whole.arrays.items())


def refused(**more):
    with pytest.raises(UserError) as error:
        train(settings(**more))
    return str(error.value)


def test_special_tokens_that_texts_spell_out_have_to_be_meant(files, capsys):
    write(files / "chat.jsonl", [("hi", "hello"), ("hi", "hello<|endoftext|>")])
    text = refused()
    assert "1 of 2 examples spell out special tokens (counts: <|endoftext|> 1)" in text
    assert "--special-tokens text" in text and "--special-tokens token" in text
    assert not (files / "run/adapter").exists()
    arguments = ["inspect", "--base", "base", "--data", "chat.jsonl", "--chat-template", "gpt2", "--batch", "0"]
    assert main(arguments) == 1
    assert "To be put right before training:" in capsys.readouterr().out
    assert main([*arguments, "--special-tokens", "text"]) == 0
    train(settings(special_tokens="text"))


def test_a_template_whose_turns_have_no_end_is_refused(files, capsys):
    (files / "endless.jinja").write_text(ENDLESS)
    assert "no token ends an assistant's turn" in refused(chat_template="endless.jinja")
    assert main(["inspect", "--base", "base", "--data", "chat.jsonl", "--chat-template", "endless.jinja"]) == 1
    assert "no token ends an assistant's turn" in capsys.readouterr().out


def test_a_base_without_a_template_needs_one_to_be_named(files):
    assert "holds conversations, but base has no chat template" in refused(chat_template=None)
    assert "no such chat template. Did you mean chatml?" in refused(chat_template="chatlm")


def test_inspect_shows_roles_scored_tokens_and_what_ends_a_turn(files, capsys):
    write(files / "chat.jsonl", [("hi", "hello", "and?", "more")])
    assert main(["inspect", "--base", "base", "--data", "chat.jsonl", "--chat-template", "gpt2"]) == 0
    out = capsys.readouterr().out
    assert "the assistant's turns end with <|endoftext|> (299), which is scored" in out
    assert "user, assistant, user, assistant" in out
    joined = out.replace("]][[", "")
    assert "User: hi\nAssistant:[[ hello<|endoftext|>]]\nUser: and?\nAssistant:[[ more<|endoftext|>]]" in joined


def test_inspect_stops_at_repeated_conversations(files, capsys):
    write(files / "chat.jsonl", [("hi", "hello"), ("ho", "hello"), ("hi", "hello")])
    assert main(["inspect", "--base", "base", "--data", "chat.jsonl", "--chat-template", "gpt2"]) == 1
    assert "1 of 3 conversations are repeated: 3 (as 1)" in capsys.readouterr().out


def test_a_conversation_that_is_too_long_loses_its_last_turns(files, capsys):
    write(files / "chat.jsonl", [("hi", "hello", "more " * 40, "no"), ("long " * 60, "never")])
    assert main(["inspect", "--base", "base", "--data", "chat.jsonl", "--chat-template", "gpt2", "--max-tokens",
                 "60", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 too long: turns left out" in out and "1 dropped: its first answer ends beyond the limit" in out
    assert "more" not in out


@pytest.mark.parametrize("text, words", [
    ("{", "expected JSON"), ("[]", "expected"),
    ('{"template": 3}', "template: expected a text with {context} and {question}, found 3"),
    ('{"template": "x", "special_tokens": "text", "conversations": false, "chat_template": null, "chat_arguments": {}, '
     '"date": null}', "template: expected a text with {context} and {question}, found 'x'"),
    ('{"template": "{context}{question}", "special_tokens": "text", "conversations": true, "chat_template": "a", '
     '"chat_arguments": {"a": {}}, "date": "soon"}', "date: expected a date"),
])
def test_a_damaged_record_is_named(files, text, words):
    train(settings())
    (files / "run/adapter/prompting.json").write_text(text)
    with pytest.raises(UserError, match="prompting.json") as error:
        load("base", "run/adapter")
    assert words in str(error.value)


@pytest.mark.slow
def test_systems_are_compared_on_conversations(files):
    train(settings())
    assert main(["compare", "--adapters", "run", "--chat-template", "gpt2", "--data", "chat.jsonl", "--output",
                 "compared", "--max-new-tokens", "4"]) == 0
    assert "how many, 3?" in (files / "compared/report.html").read_text()
