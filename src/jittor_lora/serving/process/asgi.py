"""What the middlewares share: ASGI's types, headers, and answers in OpenAI's form of an error.

ASGI: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Optional

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


def header(scope: Scope, name: bytes) -> Optional[str]:
    """The value of a header that must not be repeated: None if it is missing, "" if it is repeated."""
    found = [value for key, value in scope["headers"] if key == name]
    return None if not found else found[0].decode("latin-1").strip() if len(found) == 1 else ""


async def refuse(send: Send, status: int, message: str, code: str, kind: str = "invalid_request_error",
                 headers: Headers = ()) -> None:
    """Answer with an error."""
    await answer(send, status, error_body(message, code, kind), [(b"content-type", b"application/json"), *headers])


def error_body(message: str, code: str, kind: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


async def answer(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Answer with a whole body."""
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


def with_headers(send: Send, headers: Headers) -> Send:
    """A `send` that adds those of `headers` that the answer lacks."""
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = list(message.get("headers", ()))
            there = {name.lower() for name, _ in own}
            message = {**message, "headers": own + [pair for pair in headers if pair[0] not in there]}
        await send(message)

    return sending
