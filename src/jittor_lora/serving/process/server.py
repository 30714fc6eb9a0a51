"""The process: the main thread computes, a second one speaks HTTP, a third one waits for signals.

The first SIGTERM or Ctrl-C ends the server in order: new requests get 503, running ones have `drain_seconds`. The
second one ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from socket import socket
from typing import Optional

import uvicorn

from jittor_lora.serving.compute.engine import Engine
from jittor_lora.serving.process.asgi import App
from jittor_lora.serving.process.connection import MOST_HEADER_BYTES, PatientProtocol
from jittor_lora.serving.process.health import FAILED, STOPPING, Health
from jittor_lora.serving.process.log import Log

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
KEEP_ALIVE_SECONDS = 75  # longer than the 60 seconds that proxies keep theirs: they must be the first to close
SENDING_SECONDS = 5  # for the last bytes of answers, once all of them are computed


class Server:
    """
    Args:
        listener: bound and listening.
    """

    def __init__(self, app: App, engine: Engine, listener: socket, drain_seconds: float, health: Health, log: Log):
        self._engine, self._drain_seconds, self._health, self._log = engine, drain_seconds, health, log
        self._http = _HttpThread(app, listener, engine)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until a signal. To be called from the main thread.

        Args:
            ready: called once requests are answered.
        """
        with self._signals():
            self._http.ready = ready
            self._http.start()
            try:
                self._engine.run()
            except BaseException:
                self._health.status = FAILED
                self._http.end(1)
                raise
            self._http.end(SENDING_SECONDS)
        self._log.flush()
        if self._http.error is not None:
            raise self._http.error

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Within the block signals go to a thread. They reach it also while the main thread computes: the system's
        handler writes their numbers into a pipe."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # A shell starts background jobs with Ctrl-C ignored.
        before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
        for number in (number for number in before if before[number] is not signal.SIG_IGN):
            signal.signal(number, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._wait_for_signals, args=(reading,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writing)
            thread.join()
            os.close(reading)

    def _wait_for_signals(self, pipe: int) -> None:
        for number in iter(lambda: os.read(pipe, 1), b""):
            if number[0] not in STOPPING_SIGNALS:
                continue
            if self._health.status != STOPPING:
                self._health.status = STOPPING
                self._log.say(f"Stopping: running requests have {self._drain_seconds:g} seconds to end. Press Ctrl-C "
                              "to end at once.")
                self._engine.stop(self._drain_seconds)
            else:
                self._log.flush(0.2)
                os._exit(128 + number[0])


class _HttpThread(threading.Thread):
    """uvicorn. If it ends, the engine ends, too.

    Attributes:
        error: what it ended with.
    """

    def __init__(self, app: App, listener: socket, engine: Engine):
        super().__init__(name="http", daemon=True)
        self.error: Optional[BaseException] = None
        self.ready: Callable[[], None] = lambda: None
        self._listener, self._engine = listener, engine
        # Whatever it would read from the environment is given, too.
        config = uvicorn.Config(
            app, loop="asyncio", http=PatientProtocol, ws="none", lifespan="on", workers=1, log_config=None,
            log_level="critical", access_log=False, proxy_headers=False, forwarded_allow_ips="", server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, h11_max_incomplete_event_size=MOST_HEADER_BYTES)
        self._server = _Uvicorn(config, lambda: self.ready())

    def run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
            if not self._server.started:
                self.error = RuntimeError("the HTTP server did not start")
        except SystemExit:  # uvicorn's, where the app does not start
            self.error = RuntimeError("the HTTP server did not start")
        except BaseException as error:
            self.error = error
        finally:
            self._engine.stop(0)

    def end(self, seconds: int) -> None:
        """Let it send what is left, for this long."""
        self._server.config.timeout_graceful_shutdown = seconds
        self._server.should_exit = True
        self.join(seconds + 5)
        if self.is_alive():
            print("The HTTP server does not end.", file=sys.stderr)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Optional[list[socket]] = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
