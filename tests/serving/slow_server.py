"""A server over an engine whose jobs take as long as they are told to: `python slow_server.py [DRAIN_SECONDS [FAULT]]`.

GET /stream?ticks=N streams N lines, one each 0.02 seconds; N < 0 is a bug of the engine. FAULT "lifespan" is one of the
app; "impatient" makes the deadlines for slow clients short, and the connections few.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from jittor_lora.serving.compute.engine import Statistics
from jittor_lora.serving.compute.jobs import Done, Failed, Piece, Stopping
from jittor_lora.serving.process import connection, listening
from jittor_lora.serving.process.access_log import Logged
from jittor_lora.serving.process.guard import guarded
from jittor_lora.serving.process.health import Health
from jittor_lora.serving.process.health import router as health_router
from jittor_lora.serving.process.log import Log
from jittor_lora.serving.process.metrics import Metrics
from jittor_lora.serving.process.metrics import router as metrics_router
from jittor_lora.serving.process.server import Server
from jittor_lora.serving.settings import ServeSettings

TICK = 0.02


class SlowEngine:
    def __init__(self):
        self.metrics = Metrics(Statistics)
        self._jobs, self._lock, self._end = [], threading.Lock(), None

    def submit(self, ticks, deliver):
        if self._end is not None:
            raise Stopping
        with self._lock:
            self._jobs.append([ticks, self.metrics.watching(deliver)])

    def stop(self, seconds):
        self._end = min(self._end or float("inf"), time.monotonic() + seconds)

    def run(self):
        while self._end is None or self._jobs:
            time.sleep(TICK)
            with self._lock:
                for job in self._jobs:
                    if job[0] < 0:
                        raise RuntimeError("a bug of the engine")
                    over = self._end is not None and time.monotonic() > self._end
                    job[0] = 0 if over else job[0] - 1
                    event = Failed("The server stops.", "stopping") if over else Piece(0, "tick")
                    job[1]([event] if job[0] or over else [event, Done(7, 3, 5)])
                self._jobs = [job for job in self._jobs if job[0]]


def app_of(engine, health, fault):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        if fault == "lifespan":
            raise RuntimeError("a bug at the start")
        yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(health_router(health, "slow"))
    app.include_router(metrics_router(engine.metrics))

    @app.get("/stream")
    async def stream(ticks: int):
        arrived, loop = asyncio.Queue(), asyncio.get_running_loop()
        engine.submit(ticks, lambda events: loop.call_soon_threadsafe(arrived.put_nowait, events))

        async def lines():
            while True:
                for event in await arrived.get():
                    yield f"{type(event).__name__}\n"
                    if not isinstance(event, Piece):
                        return

        return StreamingResponse(lines())

    @app.get("/large")
    async def large():
        async def pieces():
            while True:
                yield b"x" * (1 << 20)
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    @app.post("/length")
    async def length(body: dict):
        return len(body)

    return app


def main(drain_seconds="10", fault=""):
    if fault == "impatient":
        connection.HEADER_SECONDS, connection.BODY_SECONDS, connection.WRITE_SECONDS = 1, 2, 1
        connection.MOST_CONNECTIONS = 20
    engine, health, log, settings = SlowEngine(), Health(), Log(), ServeSettings(max_body_bytes=10_000)
    listener = listening.bound("127.0.0.1", 0)
    listening.listen(listener)
    app = Logged(guarded(app_of(engine, health, fault), settings, health), engine.metrics, log, False)
    server = Server(app, engine, listener, float(drain_seconds), health, log)
    server.run(lambda: print(listening.url(listener), flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
