"""Compiles the C++ kernels of this folder into one library, once for this machine, and loads it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import sync
from jittor_lora.ops.cpu.interface import declare
from jittor_lora.system import machine
from jittor_lora.system.locks import alone
from jittor_lora.system.runtime import KernelTools, kernel_tools

SOURCES = Path(__file__).parent / "kernels"
OPERATOR = Path(__file__).parent.parent / "operator"  # call.h
# Not -Ofast, which would hide NaN. Fused multiply-adds are allowed.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-ffp-contract=fast", "-fno-math-errno",
         "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas")
TAIL_LINES = 15


def library() -> ctypes.CDLL:
    """The compiled kernels, typed as in interface.h; their symbols are visible to Jittor's operators.

    Raises:
        UserError: they cannot be compiled, with the end of the compiler's output.
    """
    kernels = _loaded()
    if not hasattr(_thread, "flushes_denormals"):  # set per thread, and for the threads of its loops
        kernels.jl_flush_denormals()
        _thread.flushes_denormals = True
    return kernels


_thread = threading.local()


@functools.lru_cache(maxsize=None)
def _loaded() -> ctypes.CDLL:
    kernels = ctypes.CDLL(str(compiled(kernel_tools(), sys.stderr)), ctypes.RTLD_GLOBAL)
    declare(kernels)
    return kernels


def compiled(tools: KernelTools, screen: TextIO) -> Path:
    """The library in Jittor's cache, compiled if it is missing."""
    flags = [*FLAGS, f"-I{OPERATOR}", f"-I{tools.onednn / 'include'}"]
    key = hashlib.sha256()
    processor = machine.cpu_model(), *sorted(machine.cpu_flags())
    for part in (tools.compiler, machine.version_of(tools.compiler), *processor, *flags):
        key.update(f"{part}\n".encode())
    for path in (*sorted(SOURCES.iterdir()), OPERATOR / "call.h"):
        key.update(path.name.encode() + path.read_bytes())
    target = tools.cache / f"jittor_lora_kernels-{key.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    with alone(target.with_suffix(".lock"), "Compiling the CPU kernels"):
        if not target.is_file():
            started = time.monotonic()
            screen.write("Compiling the CPU kernels for this machine, once: 10 to 20 seconds.\n")
            screen.flush()
            link = [f"-L{tools.onednn / 'lib'}", "-ldnnl", f"-Wl,-rpath,{tools.onednn / 'lib'}"]
            _compile(tools.compiler, flags, sorted(SOURCES.glob("*.cpp")), link, target)
            screen.write(f"  compiled in {time.monotonic() - started:.0f} s\n")
    return target


def _compile(compiler: str, flags: list[str], sources: list[Path], link: list[str], target: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".kernels-", dir=target.parent))
    try:
        objects = [work / f"{path.stem}.o" for path in sources]
        with ThreadPoolExecutor(machine.available_cores()) as pool:
            list(pool.map(lambda pair: _run([compiler, *flags, "-c", str(pair[0]), "-o", str(pair[1])]),
                          zip(sources, objects)))
        linked = work / target.name
        _run([compiler, "-shared", *flags, *map(str, objects), *link, "-o", str(linked)])
        sync(linked)
        os.replace(linked, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace")
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise UserError(f"The CPU kernels could not be compiled: {' '.join(command)}\n{tail}\n"
                        "`jittor-lora doctor` checks the compiler.")
