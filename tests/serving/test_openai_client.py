"""The `openai` package as the client."""

from __future__ import annotations

import pytest

import event_loop
from jittor_lora.inference.generator import Decoding
from needs import needs_openai
from serving import served

pytestmark = needs_openai
HELLO = [{"role": "user", "content": "Hello"}]
MODEL = "one"


@pytest.fixture
def client(server):
    import openai
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == [served.BASE, "one", "two", "three"]
    assert client.models.retrieve("two").owned_by == "jittor-lora"


def test_completions(client, server):
    answer = client.completions.create(model=MODEL, prompt="The town", temperature=0, max_tokens=12, logprobs=2, seed=1)
    generator = server.service.models[MODEL].generator
    expected = server.computed(lambda: generator.continue_groups(generator.groups([(None, "The town")]), Decoding(12),
                                                                 adapters=[MODEL]))
    assert [choice.text for choice in answer.choices] == expected
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs) > 0
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    pieces = list(client.completions.create(model=MODEL, prompt="The town", temperature=0, max_tokens=12, stream=True,
                                            stream_options={"include_usage": True}))
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == expected[0]
    assert pieces[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_conversations(client):
    ask = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_completion_tokens": 12, "logprobs": True,
           "top_logprobs": 2}
    answer = client.chat.completions.create(**ask)
    text = answer.choices[0].message.content
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason in ("stop", "length")
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    pieces = list(client.chat.completions.create(**ask, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
    with client.chat.completions.stream(**ask, stop=text[5]) as stream:  # puts the whole together itself
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text[: text.index(text[5])]
    assert 0 < len(final.choices[0].logprobs.content) < len(answer.choices[0].logprobs.content)
    more = [*HELLO, answer.choices[0].message, {"role": "user", "content": "And?"}]
    if text.strip():
        assert client.chat.completions.create(model=MODEL, messages=more, max_tokens=2).choices


def test_settings_of_others(client):
    answer = client.completions.create(model=MODEL, prompt="The town", temperature=0.5, max_tokens=8, seed=1,
                                       extra_body={"top_k": 1, "min_tokens": 8})
    assert answer.usage.completion_tokens == 8


def test_errors(client):
    import openai
    with pytest.raises(openai.NotFoundError, match="expected one of tiny, one") as raised:
        client.completions.create(model="gpt-4", prompt="x")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature: expected a number less than") as raised:
        client.completions.create(model=MODEL, prompt="x", temperature=1000)
    assert raised.value.param == "temperature" and raised.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="at most 256 tokens") as raised:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 400}])
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="not supported"):
        client.chat.completions.create(model=MODEL, messages=HELLO, tools=[
            {"type": "function", "function": {"name": "f", "parameters": {}}}])
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")


def test_errors_of_a_server_that_stops_in_a_stream(served_files):
    import openai
    with served.running(served_files, adapters=()) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model=served.BASE, prompt="x", n=100, max_tokens=240, stream=True,
                                           extra_body={"min_tokens": 240})
        next(stream)
        server.service.engine.stop(0)
        with pytest.raises(openai.APIError, match="stops"):
            for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError) as raised:
            client.completions.create(model=served.BASE, prompt="x")
        assert raised.value.status_code == 503


def test_many_clients_at_once(server):
    import asyncio

    import openai

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            async def ask(number):
                stream = await client.completions.create(
                    model=("one", "two")[number % 2], prompt=f"Town {number % 5}", seed=number % 3, temperature=0.9,
                    max_tokens=10, stream=True)
                return "".join([piece.choices[0].text async for piece in stream])

            return await asyncio.gather(*map(ask, range(60)))

    found = event_loop.run(ask_all())
    assert found[:30] == found[30:]
