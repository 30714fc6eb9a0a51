"""Connections of clients that take their time: uvicorn's protocol with deadlines for what it waits for without end.

Clients that send a request byte by byte (Slowloris), or never read their answer, would keep their connections.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Optional

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from jittor_lora.serving.process.asgi import error_body

HEADER_SECONDS, BODY_SECONDS, WRITE_SECONDS = 15, 60, 60
MOST_HEADER_BYTES = 64 << 10
MOST_CONNECTIONS = 1024
OTHER_FILES = 128  # that the process may have open besides

_BUSY = error_body("Too many connections.", "busy", "server_error")
_FULL = (b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
         b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BUSY), _BUSY))


def most_connections() -> int:
    """As many as the process may open, up to a limit."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, max(16, files - OTHER_FILES))


class PatientProtocol(H11Protocol):
    """Closes a connection whose request's headers, body, or whose reading of the answer takes too long; answers 503 to
    connections beyond the limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._waits_for: Optional[str] = None
        self._reading: Optional[asyncio.TimerHandle] = None
        self._writing: Optional[asyncio.TimerHandle] = None
        if len(self.connections) > most_connections():
            transport.write(_FULL)
            transport.close()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        super().connection_lost(exc)
        self._reading = _cancelled(self._reading)
        self._writing = _cancelled(self._writing)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing = _cancelled(self._writing)

    def _wait(self) -> None:
        """Set the deadline for what the client has begun to send."""
        state = self.conn.their_state
        waits_for = "headers" if state is h11.IDLE else "body" if state is h11.SEND_BODY else None
        if waits_for != self._waits_for:
            self._waits_for, self._reading = waits_for, _cancelled(self._reading)
            if waits_for is not None:
                seconds = HEADER_SECONDS if waits_for == "headers" else BODY_SECONDS
                self._reading = self.loop.call_later(seconds, self.transport.abort)


def _cancelled(timer: Optional[asyncio.TimerHandle]) -> None:
    """Cancel a timer, if there is one."""
    if timer is not None:
        timer.cancel()
