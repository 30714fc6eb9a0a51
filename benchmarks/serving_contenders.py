"""Who takes part in `serving.py`: this package, and the peers that are given, each with the variants that are tried."""

from __future__ import annotations

import argparse
import itertools
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving_adapters import write_gguf, write_mlx, write_random
from serving_servers import Server, llama_cpp, llama_cpp_python, mlx, ours

from jittor_lora.benchmark import base, workloads
from jittor_lora.errors import UserError
from jittor_lora.formats.bases import resolve_base

LLAMA_FLAGS = {"flash attention": ("--flash-attn", "on"), "no flash attention": ("--flash-attn", "off")}
LLAMA_COMMON = ("--cache-ram", "1024", "--no-ui", "--log-verbosity", "1")
SLOT_TOKENS = 512
MOST = 1 << 20


@dataclass(frozen=True)
class Contender:
    """
    Args:
        servers: its variants.
        share: of the requests that it gets, if it is slow.
        most_clients, most_adapters: it is left out of workloads with more.
    """

    name: str
    servers: list[Server]
    ours: bool = False
    share: float = 1.0
    most_clients: int = MOST
    most_adapters: int = MOST


@dataclass(frozen=True)
class Option:
    """A way in which a contender can be asked; see `Contexts` for `ask`."""

    name: str
    server: Server
    ask: str = ""


@dataclass(frozen=True)
class Entry:
    """A row of a comparison: the best of a contender's options."""

    name: str
    contender: Contender
    options: list[Option]


def contenders(args: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> tuple[str, list[Contender]]:
    """The base in words, and the contenders, ours first; their files are written to `folder`."""
    say("Writing the models and adapters")
    resolved = resolve_base(args.base)
    hugging_face = base.provide(args.base, folder / "base").folder
    config = workloads.open_base(hugging_face)[0].config
    adapters = args.adapter or [write_random(folder / f"adapter{i}", config, i) for i in range(4)]
    found = [Contender("jittor-lora", [ours(args.base, adapters, args.threads)], ours=True)]
    most = max(int(n) for n in args.clients.split(","))
    if args.llama_server or args.llama_cpp_python:
        gguf = args.gguf or (resolved.path if resolved.kind == "gguf" else None)
        if gguf is None:
            raise UserError("--base is not a GGUF file; give --gguf for llama.cpp.")
        loras = [write_gguf(path, folder / f"{i}.gguf", config) for i, path in enumerate(adapters)]
    if args.llama_server:
        slots = max(most, 5)
        files = {"as it is": gguf, **{kind: quantized(args.llama_server, gguf, folder / f"{kind}.gguf", kind)
                                      for kind in args.llama_types}}
        found.append(Contender("llama.cpp", [
            llama_cpp(args.llama_server, f"llama.cpp, {kind}, {flag}", path, loras, args.threads, slots, SLOT_TOKENS,
                      [*LLAMA_COMMON, *flags])
            for (kind, path), (flag, flags) in itertools.product(files.items(), LLAMA_FLAGS.items())]))
    if args.llama_cpp_python:
        found.append(Contender("llama-cpp-python", [llama_cpp_python(
            args.llama_cpp_python, "llama-cpp-python", gguf, loras[:1], args.threads, 2 * SLOT_TOKENS)],
            share=0.5, most_clients=4, most_adapters=1))
    if args.mlx:
        ports = [write_mlx(path, folder / f"mlx{i}", config) for i, path in enumerate(adapters)]
        found.append(Contender("mlx-lm", [mlx(args.mlx, "mlx-lm", hugging_face, ports, most, args.mlx_blas)],
                               share=args.mlx_share, most_clients=args.mlx_most))
    return resolved.description, found


def quantized(program: str, model: Path, path: Path, kind: str) -> Path:
    """llama.cpp's own conversion of a GGUF file to another type."""
    tool = Path(program).with_name("llama-quantize")
    subprocess.run([tool, "--allow-requantize", model, path, kind], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return path


def versions(args: argparse.Namespace) -> dict[str, str]:
    """Of the peers."""
    def said(*command: str) -> str:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""

    def of(python: str, *packages: str) -> str:
        return said(python, "-c", "from importlib.metadata import version; "
                    f"print(*(f'{{name}} {{version(name)}}' for name in {packages!r}), sep=', ')")

    found = {"llama.cpp": said(args.llama_server, "--version") if args.llama_server else "",
             "llama-cpp-python": of(args.llama_cpp_python, "llama-cpp-python") if args.llama_cpp_python else "",
             "mlx": of(args.mlx, "mlx", "mlx-lm") if args.mlx else ""}
    return {name: text for name, text in found.items() if text}
