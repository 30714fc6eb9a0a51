"""A server for the page that computes nothing: the same answers each time, in small pieces, some milliseconds apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from jittor_lora.serving.process import health
from jittor_lora.serving.process.guard import guarded
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.serving.views import page_files
from serving.served import free_port, until

RAMBLING = " The answer to the question is in the text, and the text is about the question, which is the text"
CONTINUATION = " The keeper counted ships,\nuntil 灯塔 and 😀 came <b>down</b>."
PROBABILITIES = (0.97, 0.6, 0.3, 0.1, 0.01)


@dataclass
class Script:
    """
    Attributes:
        names: of the models, the base first.
        chat: whether they have a chat template.
        seconds: between two chunks.
        fault: (status, message, Retry-After) of every request that computes, or None.
        breaks: whether streams end without [DONE].
        asked: bodies of the requests, the last one last.
        running: streams that are open.
    """

    names: tuple[str, ...] = ("smollm2-135m", "quickstart", "style")
    chat: bool = True
    key: Optional[str] = None
    seconds: float = 0.01
    fault: Optional[tuple[int, str, int]] = None
    breaks: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0


def spans(context: str, first: int, count: int) -> list[dict[str, Any]]:
    """Words of the context, from the word `first` on, each with a fifth of the probability of the one before."""
    words = list(re.finditer(r"\S+", context))
    found = [words[(first + 3 * k) % len(words)] for k in range(count)]
    return [{"text": word[0], "start": word.start(), "end": word.end(), "probability": 0.8 * 0.2 ** k,
             "log_probability": math.log(0.8 * 0.2 ** k)} for k, word in enumerate(found)]


def tokens(text: str) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """(token, log-probability, likeliest), a word each; a character outside the BMP has two."""
    found = []
    for number, piece in enumerate(re.findall(r"\s?\w+|\s|[^\w\s]", text)):
        log = math.log(PROBABILITIES[number % len(PROBABILITIES)])
        for one in ("bytes:\\xf0\\x9f", "bytes:\\x98\\x80") if piece == "😀" else (piece,):
            others = [(" sea", math.log(0.4)), ("\n", math.log(0.02)), (" <i>old</i>", math.log(0.001))]
            found.append((one, log, sorted([(one, log), *others], key=lambda other: -other[1])))
    return found


def make_app(script: Script) -> FastAPI:
    app = FastAPI()
    app.include_router(page_files.router(None))
    app.include_router(health.router(health.Health(), None))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [
            {"id": name, "object": "model", "created": 1, "owned_by": "jittor-lora", "root": script.names[0],
             "parent": None if not number else script.names[0], "max_model_len": 512, "chat": script.chat}
            for number, name in enumerate(script.names)]}

    async def reply(request: Request, chunks: Any) -> Response:
        body = await request.json()
        script.asked.append(body)
        if script.fault:
            status, message, seconds = script.fault
            return JSONResponse({"error": {"message": message, "type": "t", "param": None, "code": None}}, status,
                                {"Retry-After": str(seconds)})
        return StreamingResponse(sent(chunks(body)), media_type="text/event-stream")

    async def sent(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
        script.running += 1
        try:
            async for chunk in chunks:
                await asyncio.sleep(script.seconds)
                yield f": ping\n\ndata: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            if not script.breaks:
                yield "data: [DONE]\n\n"
        finally:
            script.running -= 1

    @app.post("/v1/answers")
    async def answers(request: Request) -> Response:
        return await reply(request, answer_chunks)

    async def answer_chunks(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        written = 0
        for question in range(len(body["questions"])):
            for number, model in enumerate(body["models"]):
                head = {"id": "ans-1", "object": "answers.chunk", "question": question, "model": model}
                text = RAMBLING * 3 if not number else " " + body["context"].split()[question]
                for piece in re.findall(r"\s?\S+", text):
                    written += 1
                    yield {**head, "method": "generation", "delta": piece}
                yield {**head, "method": "generation", "delta": "", "finish_reason": "stop",
                       "tokens": len(text.split())}
                yield {**head, "method": "span", "spans": spans(body["context"], question + number, body["spans"])}
        yield {"id": "ans-1", "object": "answers.chunk", "seconds": 1.5, "usage": {
            "prompt_tokens": 900, "completion_tokens": written, "total_tokens": 900 + written,
            "prompt_tokens_details": {"cached_tokens": 640}}}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await reply(request, lambda body: text_chunks(body, False))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await reply(request, lambda body: text_chunks(body, True))

    async def text_chunks(body: dict[str, Any], chats: bool) -> AsyncIterator[dict[str, Any]]:
        held = []
        for token in tokens(CONTINUATION):
            held.append(token)
            text = "" if token[0].endswith("\\x9f") else "😀" if token[0].startswith("bytes:") else token[0]
            if not text:
                continue
            for index in range(body["n"]):
                yield {"id": "c", "choices": [{"index": index, "finish_reason": None, **(
                    {"delta": {"content": text}, "logprobs": {"content": [
                        {"token": one, "logprob": log, "bytes": [],
                         "top_logprobs": [{"token": other, "logprob": value, "bytes": []} for other, value in likely]}
                        for one, log, likely in held]}} if chats else
                    {"text": text, "logprobs": {
                        "tokens": [one for one, _, _ in held], "token_logprobs": [log for _, log, _ in held],
                        "top_logprobs": [dict(likely) for _, _, likely in held],
                        "text_offset": [0] * len(held)}})}]}
            held = []
        for index in range(body["n"]):
            end = {"delta": {}} if chats else {"text": ""}
            yield {"id": "c", "choices": [{"index": index, "finish_reason": "stop", "logprobs": None, **end}]}
        yield {"id": "c", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}}

    return app


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[str]:
    """The address of a server that follows the script."""
    port = free_port()
    app = guarded(make_app(script), ServeSettings(port=port, api_key=script.key), health.Health())
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(30)
