"""`jittor-lora bench`: how fast this machine trains and answers, also with other tools where they are installed."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.errors import UserError, not_installed
from jittor_lora.settings.bench import BenchConfig


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "bench", help="measure training, decoding and memory on this machine, also with PEFT and llama.cpp",
        usage="jittor-lora bench --output DIR [any flag below]",
        description="Measure training steps, training on SQuAD, greedy decoding, answering and memory on this machine. "
                    "PEFT, llama.cpp (llama-cpp-python) and mlx-lm take turns with jittor-lora, each if it is "
                    "installed. All measurements go to bench.json, tables to bench.md.")
    add_flags(parser, BenchConfig, required=("output",))


def run(args: argparse.Namespace) -> int:
    config = from_flags(args, BenchConfig)
    require(config, "output")
    if importlib.util.find_spec("jittor_lora.benchmark") is None:
        raise not_installed("bench")
    from jittor_lora.benchmark.report import markdown
    from jittor_lora.benchmark.suite import measure
    from jittor_lora.benchmark.tools import PEERS, chosen
    from jittor_lora.files.atomic import atomic_write

    wanted = config.tool_names() if config.peers is not False else []
    missing = [package for name in wanted for package in PEERS[name].missing()]
    if missing and config.peers:
        raise UserError(f"--peers: not installed: {', '.join(missing)}. `pip install {' '.join(missing)}`, or leave "
                        "--peers out.")
    tools = chosen(wanted)
    if missing:
        say(f"Not installed: {', '.join(missing)}. Measuring {' and '.join(['jittor-lora', *tools])}"
            f"{'' if tools else ' alone'}.")
    text = markdown(measure(config, tools, say))
    with atomic_write(Path(config.output, "bench.md")) as stream:
        stream.write(text)
    print(text)
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
