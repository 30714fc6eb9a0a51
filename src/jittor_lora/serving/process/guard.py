"""Who may ask: checks before a request reaches the app.

A page that a browser loads from elsewhere must not reach a server on this machine. It may try under its own name, once
that leads here (DNS rebinding): the Host header gives it away. It may send requests across origins: the Origin header
does, or Fetch Metadata (https://www.w3.org/TR/fetch-metadata/).
"""

from __future__ import annotations

import hashlib
import hmac
import sys
import traceback
from typing import Optional

from jittor_lora.serving.process.asgi import App, Message, Receive, Scope, Send, answer, header, refuse, with_headers
from jittor_lora.serving.process.body import LimitedBody
from jittor_lora.serving.process.health import Health
from jittor_lora.serving.process.hosts import LOCAL_NAMES, PORTS, host_and_port, is_address, is_loopback, origin_of
from jittor_lora.serving.settings import ServeSettings

SECURITY_HEADERS = (
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
     b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
PREFLIGHT_SECONDS = 600
MOST_HEADERS = 100


def guarded(app: App, settings: ServeSettings, health: Health) -> App:
    """The app behind all checks, the first of them outermost."""
    return _Answers(_Hosts(_Origins(_Stopping(_Keys(LimitedBody(app, settings.max_body_bytes), settings), health),
                                    settings), settings))


def is_page(path: str) -> bool:
    """Whether a path is one of the page's own files, which hold nothing secret: it asks for the key."""
    return path == "/" or path.startswith("/page/")


class _Answers:
    """Adds security headers to every answer, and makes a bug one: 500."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, _failures_shown(send))
        if scope["type"] != "http":  # a WebSocket
            return await send({"type": "websocket.close", "code": 1003})
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        safe = with_headers(watching, SECURITY_HEADERS)
        if len(scope["headers"]) > MOST_HEADERS:
            return await refuse(safe, 431, f"More than {MOST_HEADERS} headers.", "too_many_headers")
        try:
            await self._app(scope, receive, safe)
        except Exception:
            print(f"{traceback.format_exc()}\njittor-lora: this is a bug in jittor-lora. Please report it with the "
                  "lines above.", file=sys.stderr)
            if started:
                raise  # closes the connection, so that the client sees an end that is none
            await refuse(safe, 500, "The server failed; its log says how.", "internal_error", "server_error")


def _failures_shown(send: Send) -> Send:
    """Of the app's start and end."""
    async def sending(message: Message) -> None:
        if message["type"].endswith(".failed"):
            print(message.get("message", ""), file=sys.stderr)
        await send(message)

    return sending


class _Hosts:
    """Refuses requests whose Host header is not one of this server."""

    def __init__(self, app: App, settings: ServeSettings):
        self._app, self._names = app, LOCAL_NAMES | {settings.host.lower(), *settings.allowed_hosts}
        self._any_address = not is_loopback(settings.host)  # a page cannot have an address as its name and be elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._known(header(scope, b"host")):
            return await refuse(send, 403, "This server does not answer for the host in the Host header; "
                                "--allowed-host NAME allows it.", "host_not_allowed")
        await self._app(scope, receive, send)

    def _known(self, value: Optional[str]) -> bool:
        found = host_and_port(value or "")
        return found is not None and (found[0] in self._names or self._any_address and is_address(found[0]))


class _Origins:
    """Refuses requests from pages of other origins, unless they are named; answers these pages' preflights.

    CORS: https://fetch.spec.whatwg.org/#http-cors-protocol
    """

    def __init__(self, app: App, settings: ServeSettings):
        self._app, self._named = app, {origin_of(one) for one in settings.cors_origins} - {None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        origin = header(scope, b"origin")
        if origin is not None and origin_of(origin) in self._named:
            shared = with_headers(send, [
                (b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"),
                (b"access-control-expose-headers", b"Retry-After")])
            if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
                return await answer(shared, 204, b"", self._preflight(scope))
            return await self._app(scope, receive, shared)
        if not self._own(scope, origin):
            return await refuse(send, 403, "Pages of other origins may not use this server; --cors ORIGIN allows one.",
                                "origin_not_allowed")
        await self._app(scope, receive, send)

    @staticmethod
    def _preflight(scope: Scope) -> list[tuple[bytes, bytes]]:
        asked = header(scope, b"access-control-request-headers") or "authorization, content-type"
        allowed = [(b"access-control-allow-methods", b"GET, POST"),
                   (b"access-control-allow-headers", asked.encode("latin-1")),
                   (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode())]
        if header(scope, b"access-control-request-private-network") == "true":
            allowed.append((b"access-control-allow-private-network", b"true"))
        return allowed

    @staticmethod
    def _own(scope: Scope, origin: Optional[str]) -> bool:
        if origin is None:
            # Browsers say where a request without an Origin comes from: a link may lead here, an image may not.
            site = header(scope, b"sec-fetch-site")
            return site not in ("cross-site", "same-site") or (
                scope["method"] in ("GET", "HEAD") and header(scope, b"sec-fetch-mode") == "navigate")
        own = host_and_port(header(scope, b"host") or "")
        found = origin_of(origin)
        return own is not None and found is not None and found[1:] == (own[0], own[1] or PORTS[found[0]])


class _Stopping:
    """503 for new requests while the server stops."""

    def __init__(self, app: App, health: Health):
        self._app, self._health = app, health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._health.ok and scope["path"] not in ("/health", "/metrics"):
            return await refuse(send, 503, "The server is stopping.", "stopping", "server_error",
                                [(b"retry-after", b"5"), (b"connection", b"close")])
        await self._app(scope, receive, send)


class _Keys:
    """Refuses requests without the key, in constant time."""

    def __init__(self, app: App, settings: ServeSettings):
        self._app = app
        self._digest = None if settings.api_key is None else _digest(settings.api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digest is not None and not self._may(scope):
            return await refuse(send, 401, "Incorrect API key, or none: send it as Authorization: Bearer KEY.",
                                "invalid_api_key", headers=[(b"www-authenticate", b"Bearer")])
        await self._app(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        if scope["path"] == "/health" or is_page(scope["path"]) and scope["method"] in ("GET", "HEAD"):
            return True
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        return hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._digest) and scheme.lower() == "bearer"


def _digest(key: bytes) -> bytes:
    """Of one length for any key, so that a comparison does not tell it."""
    return hashlib.sha256(key).digest()
