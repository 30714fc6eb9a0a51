"""From the thread that computes to the event loop, and from there to the client."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from jittor_lora.serving.api.json_body import GONE
from jittor_lora.serving.api.openai_errors import INTERNAL, ApiError, failed, not_taken
from jittor_lora.serving.compute.engine import Engine
from jittor_lora.serving.compute.jobs import Busy, Done, Event, Failed, Job, Stopping

DONE = b"data: [DONE]\n\n"
EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {
    "type": "string", "description": "with `stream`: one chunk per event, then [DONE]"}}}


class Run:
    """Jobs in the engine: iterates over (number of the job, event) as they arrive in the event loop.

    Attributes:
        done: the last event of each job that is complete.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job]):
        """
        Raises:
            ApiError: the engine takes no job.
        """
        self.done: list[Done] = []
        self._left = len(jobs)
        self._arrived: asyncio.Queue = asyncio.Queue()
        self._events: deque[tuple[int, Event]] = deque()
        self._tickets = []
        loop = asyncio.get_running_loop()
        try:
            for number, job in enumerate(jobs):
                self._tickets.append(engine.submit(job, partial(_hand_over, loop, self._arrived, number)))
        except (Busy, Stopping) as error:
            self.close()
            raise not_taken(error) from error

    def __aiter__(self) -> Run:
        return self

    async def __anext__(self) -> tuple[int, Event]:
        """
        Raises:
            ApiError: a job failed.
        """
        await self.ready()
        if not self._events:
            raise StopAsyncIteration
        number, event = self._events.popleft()
        if isinstance(event, Failed):
            raise failed(event)
        if isinstance(event, Done):
            self._left -= 1
            self.done.append(event)
        return number, event

    async def ready(self) -> None:
        """Wait for an event, unless there is none to come.

        Raises:
            ApiError: the next event is that a job failed.
        """
        if not self._events and self._left:
            number, events = await self._arrived.get()
            self._events.extend((number, event) for event in events)
        if self._events and isinstance(self._events[0][1], Failed):
            raise failed(self._events[0][1])

    def close(self) -> None:
        """Stop what is still computed."""
        for ticket in self._tickets:
            ticket.cancel()

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of all jobs, in OpenAI's form."""
        prompt, cached, completion = (sum(numbers) for numbers in zip(*self.done))
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached}}


def _hand_over(loop: asyncio.AbstractEventLoop, arrived: asyncio.Queue, number: int, events: Sequence[Event]) -> None:
    loop.call_soon_threadsafe(arrived.put_nowait, (number, events))  # RuntimeError, if the loop was closed, is handled


class Stream(EventSourceResponse):
    """Sends chunks as server-sent events until they end, fail, or the client is gone; then closes the run."""

    def __init__(self, run: Run, chunks: AsyncIterator[Mapping[str, Any]]):
        super().__init__(_sent(chunks), sep="\n", headers={"Cache-Control": "no-store"})
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.close()


async def _sent(chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield data(chunk)
    except ApiError as error:
        yield data(error.body)
    except Exception:  # the status is out: all that can still be told is that this is no regular end
        yield data(INTERNAL.body)
        raise
    else:
        yield DONE


async def in_one_piece(run: Run, take: Callable[[int, Event], Any], body: Callable[[], Mapping[str, Any]]
                       ) -> JSONResponse:
    """The response once all events have been taken."""
    try:
        async for number, event in run:
            take(number, event)
        return JSONResponse(body())
    finally:
        run.close()


async def in_chunks(run: Run, chunks: AsyncIterator[Mapping[str, Any]]) -> Stream:
    """The response once the first event is there, so that a run which fails before it has a status of its own."""
    try:
        await run.ready()
    except BaseException:
        run.close()
        raise
    return Stream(run, chunks)


def data(chunk: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response that `work` makes, which is cancelled when the client closes the connection."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=GONE)
    finally:
        await _ended(working, gone)


async def _ended(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
