"""/v1/chat/completions: the texts of `generate --chat`, in OpenAI's form."""

from __future__ import annotations

import math

import pytest

from jittor_lora.data.conversations import Turn
from jittor_lora.inference.asking import Talk, answers
from jittor_lora.inference.generator import Decoding
from jittor_lora.inference.sampling import Sampling
from serving import served

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many houses?"},
            {"role": "assistant", "content": "42."}, {"role": "user", "content": "And which river?"}]
HELLO = [{"role": "user", "content": "Hello"}]


def expected(server, model, messages, decoding, count=1):
    """As `jittor-lora generate --chat` computes it."""
    one = server.service.models[model]
    turns = tuple(Turn(message["role"], message["content"]) for message in messages)

    def compute():
        with server.service.session.adapters.only(*([one.adapter] if one.adapter else [])):
            return answers(one.chat, [Talk(turns)], decoding, count)[0]

    return server.computed(compute)


def texts(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


@pytest.mark.parametrize("model", [served.BASE, "two"])
@pytest.mark.parametrize("messages", [HELLO, MESSAGES])
def test_the_next_turn(server, model, messages):
    answer = server.answer(PATH, model=model, messages=messages, temperature=0, max_tokens=20)
    assert texts(answer) == expected(server, model, messages, Decoding(20))
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    one = server.service.models[model].chat
    turns = [Turn(message["role"], message["content"]) for message in messages]
    assert answer["usage"]["prompt_tokens"] == len(one.chat.prompt(turns))


def test_sampling(server):
    sampling = Sampling(0.9, top_p=0.95, seed=8)
    answer = server.answer(PATH, model="one", messages=MESSAGES, temperature=0.9, top_p=0.95, seed=8, n=3,
                           max_completion_tokens=10)
    assert texts(answer) == expected(server, "one", MESSAGES, Decoding(10, sampling), 3)


def test_as_long_as_the_model_takes_by_default(server):
    answer = server.answer(PATH, model=served.BASE, messages=HELLO, temperature=0, min_tokens=4000)
    usage = answer["usage"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert usage["total_tokens"] == server.service.positions + 1  # the last token is not read


def test_roles_and_parts(server):
    ask = {"model": "one", "temperature": 0, "max_tokens": 8}
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
             *MESSAGES[1:]]
    said = {**MESSAGES[2], "refusal": None, "tool_calls": [], "function_call": None, "audio": None, "annotations": []}
    plain = texts(server.answer(PATH, **ask, messages=MESSAGES))
    assert texts(server.answer(PATH, **ask, messages=parts)) == plain
    assert texts(server.answer(PATH, **ask, messages=[*MESSAGES[:2], said, MESSAGES[3]])) == plain


def test_streams_are_the_whole_in_pieces(server):
    ask = {"model": "two", "messages": MESSAGES, "n": 2, "temperature": 0.8, "seed": 4, "max_tokens": 20}
    answer = server.answer(PATH, **ask)
    *chunks, last = server.chunks(PATH, **ask, stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for choice in answer["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["delta"] == {} and own[-1]["finish_reason"] == choice["finish_reason"]
        assert "".join(one["delta"]["content"] for one in own[:-1]) == choice["message"]["content"]


def test_log_probabilities(server):
    ask = {"model": "one", "messages": MESSAGES, "temperature": 0, "max_tokens": 8, "min_tokens": 8, "logprobs": True}
    content = server.answer(PATH, **ask, top_logprobs=4)["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    for token in content:
        assert len(token["top_logprobs"]) == 4 and token["top_logprobs"][0]["logprob"] == token["logprob"]
        assert sum(math.exp(one["logprob"]) for one in token["top_logprobs"]) < 1.001
        if not token["token"].startswith("bytes:"):
            assert bytes(token["bytes"]).decode() == token["token"]
    alone = server.answer(PATH, **ask)["choices"][0]["logprobs"]["content"]
    assert alone == [{**token, "top_logprobs": []} for token in content]
    chunks = server.chunks(PATH, **ask)
    assert [token for chunk in chunks for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
            ] == alone
    assert server.answer(PATH, model="one", messages=HELLO)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("fields, param, message", [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "Hello"}, "messages", "valid list"),
    ({"messages": MESSAGES[:3]}, "messages", "expected a turn of the user at the end"),
    ({"messages": MESSAGES[2:]}, "messages", "expected a turn of the user"),
    ({"messages": MESSAGES[:1]}, "messages", "expected a turn of the user"),
    ({"messages": [*HELLO, *HELLO]}, "messages", "messages[1]: expected a turn of the assistant"),
    ({"messages": [*HELLO, *MESSAGES[:1]]}, "messages", "messages[1]"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages", "text that is not empty"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'user' or 'assistant'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "a text, or a list"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "expected this field"),
    ({"messages": [{**HELLO[0], "tool_calls": [{}]}]}, "messages[0].tool_calls", "not supported"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages", "expected at most 256 tokens"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"top_logprobs": 2}, "top_logprobs", "expected logprobs to be true"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "expected 3, as max_tokens"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_completion_tokens": 5000}, "max_completion_tokens", "at most 4,096"),
    ({"n": 500}, "n", "at most 128 texts"),
])
def test_refused(server, fields, param, message):
    error = server.error(PATH, 400, **{"model": "one", "messages": HELLO, **fields})
    assert error["param"] == param and message in error["message"]


def test_neutral_fields_change_nothing(server):
    ask = {"model": "one", "messages": HELLO, "temperature": 0, "max_tokens": 8}
    assert texts(server.answer(PATH, **ask)) == texts(server.answer(
        PATH, **ask, tools=[], tool_choice="auto", response_format={"type": "text"}, parallel_tool_calls=True,
        modalities=["text"], store=True, service_tier="auto"))


def test_a_model_without_a_chat_template(tmp_path):
    files = served.make_files(tmp_path, adapters=0, chat=False)
    with served.running(files, adapters=()) as server:
        assert [model["chat"] for model in server.client.get("/v1/models").json()["data"]] == [False]
        error = server.error(PATH, 400, model=served.BASE, messages=HELLO)
    assert error["param"] == "model" and "has no chat template" in error["message"]


def test_a_template_that_refuses(tmp_path):
    files = served.make_files(tmp_path, adapters=0)
    (files / "base/chat_template.jinja").write_text("{{ raise_exception('no hellos') }}")
    with served.running(files, adapters=()) as server:
        error = server.error(PATH, 400, model=served.BASE, messages=HELLO)
        assert error["param"] == "messages" and "no hellos" in error["message"]
        assert server.post("/v1/completions", model=served.BASE, prompt="x").status_code == 200
