"""The server under load: many requests from many clients, each answer compared with that of a separate run.

    python benchmarks/serving_load.py --output benchmarks/results

First 10,000 requests of mixed kind and size, streamed or not, to the base and three adapters, greedy or seeded, from 64
clients on loopback, some of which hang up at random: none may be lost or wrong, and the server's memory must not grow
after the first thousand. Then the server is killed under load, twice, and started again; clients try again until they
are answered. The exit code is 1 if one of these fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from serving_adapters import write_random
from serving_client import client, parsed
from serving_requests import CHAT, PATHS, Asking, expected, mixed
from serving_servers import Server, free_port, ours
from serving_tables import quantile

from jittor_lora.benchmark import base, workloads
from jittor_lora.files.atomic import make_folder, write_json
from jittor_lora.system.machine import available_cores, cpu_model

ADAPTERS = 3
MOST_MEMORY = 0.05  # growth after the first requests, relative to its mean
PATIENCE = 300.0  # seconds for which a client tries again


@dataclass
class Outcome:
    """What clients saw."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hung_up: int = 0
    again: Counter = field(default_factory=Counter)
    latency: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.right + len(self.wrong) + len(self.lost)


class Load:
    """
    Args:
        server: that is asked.
        requests, answers: distinct requests, and what each must give.
        hang_up: the share of clients that hang up before the answer's end.
        seed: of the order.
    """

    def __init__(self, server: Server, requests: list[Asking], answers: list[dict[int, str]], hang_up: float,
                 seed: int):
        self.server, self.requests, self.answers, self.hang_up = server, requests, answers, hang_up
        self.draw, self.outcome, self.samples = random.Random(seed), Outcome(), []

    async def run(self, count: int, clients: int, at: dict[int, Any] | None = None) -> None:
        """Send requests until `count` are answered.

        Args:
            at: functions to call, each in a thread, when this many are answered.
        """
        self.left, at = count, dict(at or {})
        async with client(self.server.address, clients, keep=True) as http:
            watching = asyncio.create_task(self._watch(at))
            try:
                await asyncio.gather(*(self._client(http) for _ in range(clients)))
            finally:
                watching.cancel()

    async def _watch(self, at: dict[int, Any]) -> None:
        started = time.monotonic()
        while True:
            for due in [number for number in at if number <= self.outcome.done]:
                await asyncio.to_thread(at.pop(due))
            if self.server.process.poll() is None:
                self.samples.append({"seconds": round(time.monotonic() - started, 2), "done": self.outcome.done,
                                     **self.server.use()})
            await asyncio.sleep(0.5)

    async def _client(self, http: httpx.AsyncClient) -> None:
        while self.left > 0:
            number = self.draw.randrange(len(self.requests))
            if self.draw.random() < self.hang_up:
                usual = statistics.median(self.outcome.latency[-99:] or [1.0])
                try:
                    await asyncio.wait_for(self._send(http, self.requests[number]), self.draw.uniform(0, usual))
                except (asyncio.TimeoutError, httpx.TransportError):
                    self.outcome.hung_up += 1
                continue
            self.left -= 1
            await self._answered(http, number)
            if self.outcome.done % 500 == 0:
                print(f"{self.outcome.done} answered", file=sys.stderr, flush=True)

    async def _answered(self, http: httpx.AsyncClient, number: int) -> None:
        """Send a request until it is answered, and compare."""
        outcome, request, until = self.outcome, self.requests[number], time.monotonic() + PATIENCE
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                status, texts, first, wait = await self._send(http, request)
            except httpx.TransportError as error:
                outcome.again[type(error).__name__] += 1
                await asyncio.sleep(0.2)
                continue
            if status in (429, 503):
                outcome.again[str(status)] += 1
                await asyncio.sleep(wait)
                continue
            outcome.latency.append(time.perf_counter() - started)
            if first is not None:
                outcome.first.append(first)
            if status == 200 and texts == self.answers[number]:
                outcome.right += 1
            else:
                outcome.wrong.append(f"{request.path} {json.dumps(request.body())}: status {status}, expected "
                                     f"{self.answers[number]}, found {texts}")
            return
        outcome.lost.append(f"{request.path} {json.dumps(request.body())}")

    async def _send(self, http: httpx.AsyncClient, request: Asking) -> tuple[int, Any, float | None, float]:
        """Status, texts, seconds until the first text if streamed, and seconds to wait before trying again."""
        streamed, started, pieces = self.draw.random() < 0.5, time.perf_counter(), []
        async with http.stream("POST", request.path, json={**request.body(), "stream": streamed}) as response:
            async for piece in response.aiter_raw():
                pieces.append((time.perf_counter() - started, piece))
        wait = float(response.headers.get("retry-after", 1))
        whole = b"".join(piece for _, piece in pieces)
        if response.status_code != 200:
            return response.status_code, whole.decode(errors="replace"), None, wait
        if not streamed:
            return 200, texts_of(json.loads(whole)), None, wait
        if not whole.rstrip().endswith(b"data: [DONE]"):
            raise httpx.RemoteProtocolError("the stream ends early")
        reply = parsed(pieces)
        return 200, reply.texts, reply.first, wait


def texts_of(answer: dict[str, Any]) -> dict[int, str]:
    """The texts of an answer that was not streamed, as in `Reply`."""
    if "choices" in answer:
        return {choice["index"]: choice["text"] if "text" in choice else choice["message"]["content"]
                for choice in answer["choices"]}
    return {one["question"]: one["text"] if "text" in one else f"{one['spans'][0]['start']}:{one['spans'][0]['end']}"
            for one in answer["answers"]}


def memory(samples: list[dict[str, Any]], first: int) -> dict[str, Any]:
    """How memory grows after the first requests, by least squares."""
    later = [sample for sample in samples if sample["done"] >= first] or samples
    done, resident = (np.array([sample[name] for sample in later], float) for name in ("done", "rss_mib"))
    slope = np.polyfit(done, resident, 1)[0] if len(set(done)) > 1 else 0.0
    growth = slope * (done[-1] - done[0]) / resident.mean()
    return {"mib_after_first": resident[0], "mib_at_end": resident[-1], "mib_at_most": resident.max(),
            "mib_per_1000": 1000 * slope, "growth": growth, "flat": bool(growth < MOST_MEMORY)}


def figures(outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {"right": outcome.right, "wrong": len(outcome.wrong), "lost": len(outcome.lost),
            "hung_up": outcome.hung_up, "sent_again": dict(outcome.again), "seconds": seconds,
            "per_second": outcome.done / seconds, "examples": [*outcome.wrong[:5], *outcome.lost[:5]],
            **{name: {f"p{share * 100:.0f}": quantile(values, share) for share in (0.5, 0.9, 0.99, 1.0)}
               for name, values in (("latency", outcome.latency), ("first", outcome.first)) if values}}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--output", type=Path, required=True, help="folder for serving_load.json and the server's log")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kill-requests", type=int, default=1_500, help="while the server is killed; 0 for none")
    parser.add_argument("--distinct", type=int, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--words", type=int, default=150, help="most per prompt")
    parser.add_argument("--new", type=int, default=48, help="most new tokens per text")
    parser.add_argument("--hang-up", type=float, default=0.05, help="share of requests whose client hangs up")
    parser.add_argument("--cache", type=int, default=256, help="MiB, small enough that prefixes leave it")
    parser.add_argument("--adapter-scale", type=float, default=0.03, help="standard deviation of A and B")
    parser.add_argument("--threads", type=int, default=available_cores())
    args = parser.parse_args(arguments)
    make_folder(args.output)
    log = args.output / "serving_load.log"
    with tempfile.TemporaryDirectory(prefix="jittor-lora-") as name:
        folder = Path(name)
        config = workloads.open_base(base.provide(args.base, folder / "base").folder)[0].config
        adapters = [write_random(folder / f"adapter{i}", config, i, args.adapter_scale) for i in range(ADAPTERS)]
        requests, answers, what = alone(args, adapters)
        server = ours(args.base, adapters, args.threads, ["--cache", str(args.cache)])
        port = free_port()
        server.start(log, port)
        try:
            found = loaded(args, server, requests, answers, lambda: (server.stop(), server.start(log, port)))
        finally:
            server.stop()
    report = {"base": what, "cpu": cpu_model(), "cores": available_cores(),
              "settings": {name: str(value) for name, value in vars(args).items()}, **found}
    write_json(args.output / "serving_load.json", report)
    for part in ("load", "kill"):
        if part in found:
            print(f"{part}: " + ", ".join(f"{name} {value}" for name, value in found[part].items()))
    print("memory: {mib_after_first:.0f} MiB after the first tenth, {mib_at_end:.0f} at the end, {mib_at_most:.0f} at "
          "most; {mib_per_1000:+.1f} MiB per 1,000 requests".format(**found["memory"]))
    good = not any(found[part][name] for part in ("load", "kill") if part in found for name in ("wrong", "lost"))
    return 0 if good and found["memory"]["flat"] else 1


def alone(args: argparse.Namespace, adapters: list[Path]) -> tuple[list[Asking], list[dict[int, str]], str]:
    """The requests, the answer of each, computed one by one, and the base in words."""
    from jittor_lora.serving.models import Models
    from jittor_lora.session import load
    session = load(args.base, precision="bf16")  # the default of serve
    models = Models(session)
    for path in adapters:
        models.load(path.name, path)
    kinds = [kind for kind in PATHS if kind != CHAT or models[models.base].chat is not None]
    requests = mixed(args.distinct, list(models), kinds, args.words, args.new)
    print(f"Computing the answers to {len(requests)} requests", file=sys.stderr, flush=True)
    return requests, expected(models, requests), session.base.description


def loaded(args: argparse.Namespace, server: Server, requests: list[Asking], answers: list[dict[int, str]],
           restart: Any) -> dict[str, Any]:
    """What happens under load, and under load with `restart`."""
    first, load = time.monotonic(), Load(server, requests, answers, args.hang_up, 1)
    asyncio.run(load.run(args.requests, args.clients))
    found = {"load": figures(load.outcome, time.monotonic() - first),
             "memory": memory(load.samples, args.requests // 10), "samples": load.samples}
    if args.kill_requests:
        first, load = time.monotonic(), Load(server, requests, answers, args.hang_up, 2)
        third = args.kill_requests // 3
        asyncio.run(load.run(args.kill_requests, args.clients, {third: restart, 2 * third: restart}))
        found["kill"] = figures(load.outcome, time.monotonic() - first)
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the servers, too
    sys.exit(main(sys.argv[1:]))
