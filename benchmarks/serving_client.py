"""The client of `serving.py` and `serving_load.py`: requests over HTTP, streamed and timed.

A server's answer is read as bytes and parsed after its end, so that the client takes little of the processor.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(1800.0, connect=30.0)


@dataclass
class Reply:
    """
    Args:
        first: seconds until the first piece of text.
        seconds: until the end.
        texts: by choice or question.
        reasons: `finish_reason` by choice or question.
        tokens: generated, as the server counts them.
        prompt_tokens, cached_tokens: as the server counts them; 0 if it does not.
    """

    first: float = 0.0
    seconds: float = 0.0
    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


def client(address: str, connections: int, keep: bool = False) -> httpx.AsyncClient:
    """
    Args:
        keep: use connections again; some servers close them at a moment of their own, between two requests.
    """
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections if keep else 0)
    return httpx.AsyncClient(base_url=address, timeout=TIMEOUT, limits=limits, trust_env=False)


async def stream(http: httpx.AsyncClient, path: str, body: dict[str, Any], usage: bool = True) -> Reply:
    """Send a request and time its streamed answer.

    Args:
        usage: ask for the counts of tokens, as the servers of completions want it.

    Raises:
        RuntimeError: it is an error, or ends early.
    """
    started, pieces = time.perf_counter(), []
    asked = {**body, "stream": True, **({"stream_options": {"include_usage": True}} if usage else {})}
    async with http.stream("POST", path, json=asked) as response:
        async for piece in response.aiter_raw():
            pieces.append((time.perf_counter() - started, piece))
    whole = b"".join(piece for _, piece in pieces)
    if response.status_code != 200:
        raise RuntimeError(f"{path}: {response.status_code} {whole[:500].decode(errors='replace')}")
    if b"data: [DONE]" not in whole:
        raise RuntimeError(f"{path}: ends early: {whole[-200:].decode(errors='replace')}")
    return parsed(pieces)


def parsed(pieces: list[tuple[float, bytes]]) -> Reply:
    """
    Args:
        pieces: (seconds, bytes) of a stream of server-sent events.
    """
    reply, events, rest = Reply(seconds=pieces[-1][0]), 0, b""
    for seconds, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"in the stream: {event['error']}")
            for index, text, reason in parts(event):
                if text:
                    reply.first, events = reply.first or seconds, events + 1
                reply.texts[index] = reply.texts.get(index, "") + text
                if reason:
                    reply.reasons[index] = reason
            usage = event.get("usage")
            if usage:
                reply.tokens, reply.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
                reply.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    reply.tokens = reply.tokens or events
    reply.first = reply.first or reply.seconds
    return reply


def parts(event: dict[str, Any]) -> Iterable[tuple[int, str, str | None]]:
    """(choice or question, text, reason) of an event."""
    for choice in event.get("choices", ()):
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        yield choice.get("index", 0), text, choice.get("finish_reason")
    if "spans" in event:
        yield event["question"], "{start}:{end}".format(**event["spans"][0]), None
    elif "question" in event:
        yield event["question"], event.get("delta", ""), event.get("finish_reason")


async def in_parallel(tasks: Iterable[Callable[[], Awaitable[Any]]], clients: int) -> tuple[list[Any], float]:
    """Run tasks with `clients` workers, each with one task at a time; results in the order of tasks, and seconds."""
    waiting, results = iter(enumerate(tasks)), {}

    async def work() -> None:
        for index, task in waiting:
            results[index] = await task()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return [results[i] for i in sorted(results)], time.perf_counter() - started
