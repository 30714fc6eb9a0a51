"""The body of a request, read within limits before the app sees it."""

from __future__ import annotations

from jittor_lora.serving.process.asgi import App, Message, Receive, Scope, Send, header, refuse

BODIES = 16  # bodies of the largest size that may be in memory at once


class LimitedBody:
    """413 for a body that is too large, declared or not, and 429 where all requests together hold too much."""

    def __init__(self, app: App, most: int):
        self._app, self._most, self._held = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = header(scope, b"content-length")
        if declared is not None and declared.isdecimal() and int(declared[:19]) > self._most:
            return await self._too_large(send)
        held, pieces = 0, []
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                piece = message.get("body", b"")
                held, self._held = held + len(piece), self._held + len(piece)
                if held > self._most:
                    return await self._too_large(send)
                if self._held > self._most * BODIES:
                    return await refuse(send, 429, "Too many large requests at once.", "busy", "rate_limit_error",
                                        [(b"retry-after", b"1")])
                pieces.append(piece)
                if not message.get("more_body", False):
                    break
            await self._app(scope, _replayed(b"".join(pieces), receive), send)
        finally:
            self._held -= held

    async def _too_large(self, send: Send) -> None:
        await refuse(send, 413, f"The body of a request may have {self._most:,} bytes; --max-body allows more.",
                     "body_too_large")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what the connection reports: that the client went away."""
    waiting = [body]

    async def receiving() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return receiving
