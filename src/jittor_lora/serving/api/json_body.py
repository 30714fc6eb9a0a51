"""Bodies of requests: JSON in UTF-8 and nothing else, of limited size, depth and numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from jittor_lora.files.untrusted import load_json, unique_keys
from jittor_lora.serving.api.openai_errors import ApiError

LARGE = 1 << 16  # bytes of a body that is parsed while the event loop goes on
GONE = 499  # the client closed the connection: nginx's status, which nobody reads


class JsonRoute(APIRoute):
    """A route whose body, if it has one, is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            if self.body_field is None:
                return await handle(request)
            try:
                body = await _json_bytes(request)
                value = parse(body) if len(body) < LARGE else await run_in_threadpool(parse, body)
            except ClientDisconnect:
                return Response(status_code=GONE)
            return await handle(_Parsed(request, value))

        return strictly


class _Parsed(Request):
    """A request whose body was read."""

    def __init__(self, request: Request, value: Any):
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"null"  # FastAPI asks whether there is one

    async def json(self) -> Any:
        return self._value


async def _json_bytes(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type: expected application/json; found {kind[:80] or 'nothing'}.")
    body = await request.body()
    if not body:
        raise ApiError(400, "The body: expected a JSON object; found nothing.")
    return body


def parse(body: bytes) -> Any:
    """The value of a body.

    Raises:
        ApiError: not JSON in UTF-8, a key that occurs twice, NaN or an infinity, half a surrogate pair, nested too
            deeply, or a number of too many digits.
    """
    try:
        text = body.decode("utf-8")
        value = load_json(text, object_pairs_hook=unique_keys(lambda key: ascii(key[:80])), parse_constant=_no_constant,
                          parse_float=_number)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body: expected JSON in UTF-8; found the byte {error.object[error.start]:#04x} at "
                            f"{error.start:,}.") from error
    except UnicodeEncodeError as error:
        raise ApiError(400, "The body: expected Unicode texts; found half a surrogate pair, "
                            f"\\u{ord(error.object[error.start]):04x}.") from error
    except ValueError as error:
        raise ApiError(400, f"The body: expected JSON: {error}.") from error
    return value


def _number(text: str) -> float:
    """Subnormal numbers are 0: the processor may take them as that, or not, depending on the thread."""
    number = float(text)
    return number if abs(number) >= sys.float_info.min else 0.0


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON has")
