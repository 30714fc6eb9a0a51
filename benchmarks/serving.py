"""Servers in turns at the same requests: time to the first token, tokens per second, contexts asked five questions.

    python benchmarks/serving.py --output benchmarks/results --llama-server build/bin/llama-server --mlx venv/bin/python

Without peers, only this package is measured. llama.cpp gets the same GGUF file and what its `llama-quantize` makes of
that; mlx-lm gets the same weights as a Hugging Face folder. Which file and flags are a peer's best is found by a trial
before the rounds of each workload (`tried` and `choice` in serving.json).

All servers are started once; those that wait are stopped by SIGSTOP, so that one runs at a time. Requests begin with a
number of their own, so that no cache knows them before, but for what the questions of one context share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serving_contenders import Entry, Option, contenders, versions
from serving_tables import tables
from serving_workloads import UNITS, Workload, warm_up, workloads

from jittor_lora.benchmark.worker import machine_seconds
from jittor_lora.files.atomic import make_folder, write_json
from jittor_lora.system.machine import available_cores
from jittor_lora.system.runtime import system_info

LONG = 16  # tokens; shorter texts may be line breaks alone


async def measure(option: Option, workload: Workload, numbers: Iterator[int], share: float = 1.0) -> dict[str, Any]:
    """Run a workload once.

    Args:
        numbers: never used before, one for each request or context.
        share: of the workload's requests.
    """
    server = option.server
    await workload.prepare(server, numbers, share)
    before, own, busy = server.use(), time.process_time(), machine_seconds()
    replies, seconds = await workload.run(option)
    after = server.use()
    cpu, client = after["cpu_seconds"] - before["cpu_seconds"], time.process_time() - own
    others = machine_seconds() - busy - cpu - client
    texts = [text for reply in replies for _, text in sorted(reply.texts.items())]
    if len(texts) != len(replies) * workload.texts_per_unit:
        raise RuntimeError(f"expected {workload.texts_per_unit} texts of each of {len(replies)}, found {len(texts)}")
    if workload.new >= LONG and sum(not text.strip() for text in texts) > len(texts) / 5:
        raise RuntimeError("more than a fifth of the texts are empty")
    return {"seconds": seconds, "units": len(replies), "tokens": sum(reply.tokens for reply in replies),
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
            "cached_tokens": sum(reply.cached_tokens for reply in replies),
            "first": [round(reply.first, 4) for reply in replies],
            "latency": [round(reply.seconds, 4) for reply in replies],
            "reasons": Counter(reason for reply in replies for reason in reply.reasons.values()), "texts": texts,
            "cpu_seconds": cpu, "client_cpu_seconds": client, "others_cpu_seconds": max(0.0, others),
            "rss_mib": after["rss_mib"]}


TRIALS = 50 * UNITS  # numbers from here on are those of trials


def compare(entries: list[Entry], workload: Workload, rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Each contender runs once per round, in reverse order in every other round; before, its options are tried, and
    the best is taken. One that fails is left out from then on."""
    records = [{"name": entry.name, "ours": entry.contender.ours, "choice": None, "tried": {}, "runs": []}
               for entry in entries]

    def once(entry: Entry, option: Option, first: int, share: float) -> dict[str, Any]:
        option.server.go_on()
        try:
            numbers = itertools.count(workload.first_number + first)
            return asyncio.run(measure(option, workload, numbers, entry.contender.share * share))
        finally:
            option.server.hold()

    chosen: dict[str, Option] = {}
    for entry, record in zip(entries, records):
        limit = entry.contender
        if workload.clients > limit.most_clients or workload.adapters > limit.most_adapters:
            record["error"] = "left out"
            continue
        for number, option in enumerate(entry.options if len(entry.options) > 1 else ()):
            with failure_noted(record, option.name, say):
                tried = once(entry, option, TRIALS + number * UNITS, workload.trial)
                record["tried"][option.name] = tried["units"] / tried["seconds"]
                say(f"  trial of {option.name}: {record['tried'][option.name]:.2f} per second")
        able = [option for option in entry.options if option.name in record["tried"] or len(entry.options) == 1]
        if able:
            chosen[entry.name] = max(able, key=lambda option: record["tried"].get(option.name, 0.0))
            record["choice"] = chosen[entry.name].name
            record.pop("error", None)
    for number in range(rounds):
        pairs = list(zip(entries, records))
        for entry, record in reversed(pairs) if number % 2 else pairs:
            if entry.name not in chosen or "error" in record:
                continue
            option, place = chosen[entry.name], [e for e in entries if e.contender is entry.contender].index(entry)
            with failure_noted(record, option.name, say):
                run = once(entry, option, (2 * number + place) * UNITS, 1.0)
                record["runs"].append(run)
                say(f"  {option.name}: {run['units']} in {run['seconds']:.1f} s, {run['tokens'] / run['seconds']:.1f} "
                    f"tokens/s, others {run['others_cpu_seconds']:.1f} CPU s")
    for record in records:
        for run in record["runs"][1:]:
            del run["texts"]  # those of the first round are compared
    return records


@contextlib.contextmanager
def failure_noted(record: dict[str, Any], name: str, say: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
        say(f"  {name}: failed: {record['error']}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapter", type=Path, nargs=4, help="four folders in PEFT's format; by default random ones")
    parser.add_argument("--output", type=Path, required=True, help="folder for serving.json and the servers' logs")
    parser.add_argument("--parts", default="texts,contexts")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=32, help="tokens per text")
    parser.add_argument("--words", type=int, default=100, help="per prompt")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--llama-server", help="llama.cpp's program")
    parser.add_argument("--gguf", type=Path, help="the base as GGUF; by default the one --base names")
    parser.add_argument("--llama-types", nargs="*", default=["F32"], help="of weights that are tried beside the file's")
    parser.add_argument("--llama-cpp-python", help="a Python with llama-cpp-python[server]")
    parser.add_argument("--mlx", help="a Python with mlx-lm")
    parser.add_argument("--mlx-blas", help="a library that mlx loads in place of its BLAS, which is the reference one")
    parser.add_argument("--mlx-most", type=int, default=16, help="most clients for mlx-lm")
    parser.add_argument("--mlx-share", type=float, default=0.5, help="of the requests that mlx-lm gets")
    parser.add_argument("--quick", action="store_true", help="a few short requests, to see that it runs")
    args = parser.parse_args(arguments)
    if args.quick:
        args.clients, args.rounds, args.new, args.words = "1,2", 1, 4, 8

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    make_folder(args.output)
    with tempfile.TemporaryDirectory(prefix="jittor-lora-") as folder, contextlib.ExitStack() as stack:
        description, found = contenders(args, Path(folder), say)
        for contender in found:
            for server in contender.servers:
                stack.callback(server.stop)
                say(f"Starting {server.name}")
                server.start(args.output / "serving.log")
                asyncio.run(warm_up(server))
                server.hold()
        report = {"base": description, "system": {**system_info(), **versions(args)},
                  "settings": {name: str(value) for name, value in vars(args).items()}, "results": []}
        for workload in workloads(args):
            say(workload.title)
            result = {**workload.record(), "load_before": os.getloadavg()[0],
                      "contenders": compare(workload.entries(found), workload, args.rounds, say)}
            report["results"].append(result)
            write_json(args.output / "serving.json", report)
    print(tables(report))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the servers, too
    main(sys.argv[1:])
