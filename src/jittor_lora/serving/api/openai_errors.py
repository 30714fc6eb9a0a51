"""Errors in OpenAI's form, whatever goes wrong: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Optional

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jittor_lora.data.text_file import shown
from jittor_lora.errors import UserError
from jittor_lora.serving.compute.jobs import Busy, Failed, Stopping

SHOWN = 10  # fields in a message
EXPECTED = "expected"  # the type of a pydantic error whose message needs nothing more
INVALID, SERVER = "invalid_request_error", "server_error"
# Of a failed job: status and code by its fault
_FAULTS = {"request": (400, None), "server": (500, None), "timeout": (504, "timeout"), "stopping": (503, "stopping")}
RETRY_SECONDS = 1  # where another server may have taken over by then


class Fault(BaseModel):
    message: str
    type: str
    param: Optional[str]
    code: Optional[str]


class ErrorBody(BaseModel):
    """What went wrong."""

    error: Fault


RESPONSES: dict[Any, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered; 429 says in Retry-After when to try "
                                               "again."},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer; 503 while it stops, 504 after the most time "
                                               "for a request."},
}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        param: the field that is to blame.
        retry: seconds after which trying again makes sense.
    """

    def __init__(self, status: int, message: str, param: Optional[str] = None, code: Optional[str] = None,
                 retry: Optional[int] = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, None if self.retry is None else {"Retry-After": str(self.retry)})


def refused(error: UserError, param: Optional[str] = None) -> ApiError:
    return ApiError(400, str(error), param)


def failed(event: Failed) -> ApiError:
    """The error of a job that failed."""
    status, code = _FAULTS[event.fault]
    return ApiError(status, event.message, None, code, RETRY_SECONDS if status == 503 else None)


def not_taken(error: Exception) -> ApiError:
    """The error of a job that the engine did not take, as `Busy` or `Stopping` says."""
    if isinstance(error, Busy):
        return ApiError(429, "Too many requests are waiting. Try again in a moment.", None, "rate_limit_exceeded",
                        max(1, error.seconds))
    assert isinstance(error, Stopping)
    return ApiError(503, "The server is stopping.", None, "stopping", RETRY_SECONDS)


def install(app: FastAPI) -> None:
    """Make all errors of the app ones in this form."""
    for kind, made in ((ApiError, lambda error: error), (UserError, refused), (RequestValidationError, _wrong_fields),
                       (HTTPException, None)):
        app.add_exception_handler(kind, _of_status if made is None else _handler(made))
    app.add_middleware(_Bugs)


class _Bugs:
    """Answers with an error where a bug raises; Starlette's own handler would close the connection, too."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if started or scope["type"] != "http":
                raise
            print(f"{traceback.format_exc()}\njittor-lora: this is a bug in jittor-lora. Please report it with the "
                  "lines above.", file=sys.stderr)
            await INTERNAL.response()(scope, receive, send)


def _handler(made: Callable[[Any], ApiError]) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        return made(error).response()

    return handle


INTERNAL = ApiError(500, "A bug in the server; its log says more.")


async def _of_status(request: Request, error: HTTPException) -> JSONResponse:
    """Of Starlette's own errors: no such page, not this method."""
    text = error.detail or HTTPStatus(error.status_code).phrase
    if error.status_code == 404:
        text = f"{_short(request.url.path)}: no such page."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        text = f"{_short(request.url.path)}: expected {allowed}; found {_short(request.method)}."
    made = ApiError(error.status_code, text)
    return JSONResponse(made.body, made.status, error.headers)


def _wrong_fields(error: RequestValidationError) -> ApiError:
    """All fields that are not as expected in one message; `param` is the first."""
    problems = [(_field(problem["loc"]), _expected(problem)) for problem in error.errors()]
    lines = [f"{field}: {text}" if field else text for field, text in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"and {len(problems) - SHOWN:,} more")
    return ApiError(400, "; ".join(lines) + ".", problems[0][0] or None)


def _field(place: Sequence[Any]) -> str:
    """("body", "messages", 0, "role") as messages[0].role"""
    parts = [part for part in place[1:] if part != "[key]"]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return _short(text.lstrip("."))


def _expected(problem: Mapping[str, Any]) -> str:
    kind, text = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return "unknown field; leave it out"
    if kind == "missing":
        return "expected this field; found nothing"
    if kind == EXPECTED:
        return text
    text = re.sub("Input should be (?=greater|less)", "expected a number ", text)
    text = re.sub("Input should be a valid dictionary.*", "expected an object", text)
    text = text.replace("Input should be", "expected")
    return f"{text}; found {_short(shown(problem['input']))}"


def _type(status: int) -> str:
    return "rate_limit_error" if status == 429 else INVALID if status < 500 else SERVER


def _short(text: str, most: int = 80) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else text[: most - 1] + "…"
