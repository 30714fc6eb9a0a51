"""What OpenAI's two endpoints share: a request to one model, each of whose texts becomes a choice."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Optional, Protocol

from fastapi import Response

from jittor_lora.serving.api.fields import StreamOptions
from jittor_lora.serving.api.streaming import Run, in_chunks, in_one_piece
from jittor_lora.serving.compute.jobs import End, Event, Generation, Piece, PromptTokens
from jittor_lora.serving.models import Served
from jittor_lora.serving.service import Service


class Choice(Protocol):
    """A text as its events arrive."""

    def add(self, event: PromptTokens | Piece | End) -> dict[str, Any]:
        """Take an event; returns what it adds, as a chunk has it."""

    def whole(self) -> dict[str, Any]:
        """All of it, once it is complete."""


class Choices:
    """
    Args:
        prefix: of the answer's id.
        names: of the whole answer and of a chunk: their `object`.
        options: the request's `stream_options`; None for no stream.
    """

    def __init__(self, service: Service, served: Served, prefix: str, names: tuple[str, str],
                 options: Optional[StreamOptions]):
        self.service, self.served, self._names, self._options = service, served, names, options
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
        self.choices: Sequence[Choice] = ()

    def job(self) -> Generation:
        """Called in the thread that encodes."""
        raise NotImplementedError

    def openings(self) -> Sequence[dict[str, Any]]:
        """Choices of the chunks before the first event."""
        return ()

    async def respond(self) -> Response:
        run = await self.service.begin([self.served], lambda: [self.job()])
        if self._options is not None:
            return await in_chunks(run, self._chunks(run, bool(self._options.include_usage)))
        return await in_one_piece(run, self._take, lambda: {
            **self._head, "object": self._names[0], "choices": [choice.whole() for choice in self.choices],
            "usage": run.usage})

    async def _chunks(self, run: Run, counted: bool) -> AsyncIterator[dict[str, Any]]:
        head, rest = {**self._head, "object": self._names[1]}, {"usage": None} if counted else {}
        for opening in self.openings():
            yield {**head, "choices": [opening], **rest}
        async for number, event in run:
            added = self._take(number, event)
            if added is not None:
                yield {**head, "choices": [added], **rest}
        if counted:
            yield {**head, "choices": [], "usage": run.usage}

    def _take(self, number: int, event: Event) -> Optional[dict[str, Any]]:
        if isinstance(event, (PromptTokens, Piece, End)):
            return self.choices[event.index].add(event)
        return None


def stream_options(body: Any) -> Optional[StreamOptions]:
    """Those of a request, None if it asks for no stream."""
    return (body.stream_options or StreamOptions()) if body.stream else None
