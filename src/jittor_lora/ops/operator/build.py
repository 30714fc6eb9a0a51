"""Compiles the kernels of a backend into one library, once for this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Sequence, TextIO

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import sync
from jittor_lora.system import machine
from jittor_lora.system.locks import alone

OPERATOR = Path(__file__).parent  # call.h
TAIL_LINES = 15


class Recipe(NamedTuple):
    """How a library is compiled.

    Attributes:
        kernels: what it holds, for messages: "CPU kernels".
        name: the beginning of its file's name.
        duration: how long it takes, for the message: "10 to 20 seconds".
        folder: the sources and headers.
        sources: a pattern of the files to compile.
        compile: the command for a source, but for `-c SOURCE -o OBJECT`.
        link: the command for the library, but for the objects and `-o LIBRARY`.
        libraries: what follows the objects.
        facts: what else the library depends on, such as the compiler's version.
    """

    kernels: str
    name: str
    duration: str
    folder: Path
    sources: str
    compile: Sequence[str]
    link: Sequence[str]
    libraries: Sequence[str]
    facts: Sequence[str]


def library(recipe: Recipe, cache: Path, screen: TextIO) -> Path:
    """The library in `cache`, compiled if it is missing; a message on `screen` says so.

    Raises:
        UserError: it cannot be compiled, with the end of the compiler's output.
    """
    target = cache / f"{recipe.name}-{_key(recipe)}.so"
    if target.is_file():
        return target
    with alone(target.with_suffix(".lock"), f"Compiling the {recipe.kernels}"):
        if not target.is_file():
            started = time.monotonic()
            screen.write(f"Compiling the {recipe.kernels} for this machine, once: {recipe.duration}.\n")
            screen.flush()
            _compile(recipe, target)
            screen.write(f"  compiled in {time.monotonic() - started:.0f} s\n")
    return target


def _key(recipe: Recipe) -> str:
    """Of everything that the library depends on."""
    key = hashlib.sha256()
    for part in (*recipe.facts, *recipe.compile, *recipe.link, *recipe.libraries):
        key.update(f"{part}\n".encode())
    for path in (*sorted(recipe.folder.iterdir()), OPERATOR / "call.h"):
        key.update(path.name.encode() + path.read_bytes())
    return key.hexdigest()[:16]


def _compile(recipe: Recipe, target: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".kernels-", dir=target.parent))
    try:
        sources = sorted(recipe.folder.glob(recipe.sources))
        objects = [work / f"{path.stem}.o" for path in sources]
        with ThreadPoolExecutor(machine.available_cores()) as pool:
            list(pool.map(lambda pair: _run(recipe, [*recipe.compile, "-c", str(pair[0]), "-o", str(pair[1])]),
                          zip(sources, objects)))
        linked = work / target.name
        _run(recipe, [*recipe.link, *map(str, objects), *recipe.libraries, "-o", str(linked)])
        sync(linked)
        os.replace(linked, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(recipe: Recipe, command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace")
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise UserError(f"The {recipe.kernels} could not be compiled: {' '.join(command)}\n{tail}\n"
                        "`jittor-lora doctor` checks the compiler.")
