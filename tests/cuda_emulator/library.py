"""The CUDA kernels compiled for the CPU, against cuda_emulator.h."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jittor_lora.ops.cuda import kernels_folder
from jittor_lora.ops.operator.kernel_op import HERE as OPERATOR
from jittor_lora.system import machine
from jittor_lora.system.locks import alone
from jittor_lora.system.runtime import kernel_tools

HERE = Path(__file__).parent
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall",
         "-Wno-unknown-pragmas", "-Wno-unused-variable", "-fsanitize=alignment,bounds", "-fno-sanitize-recover=all")


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """Compiled into Jittor's cache, a file again only if it or a header has changed.

    A file here stands in for the kernels' file of the same name.
    """
    if not machine.is_x86():
        pytest.skip("the CUDA emulator runs on x86-64 only")
    tools = kernel_tools()
    folder = tools.cache / "jittor_lora_cuda_emulator"
    folder.mkdir(exist_ok=True)
    own = {path.stem: path for path in HERE.glob("*.cpp")}
    sources = sorted({**{path.stem: path for path in kernels_folder().glob("*.cu")}, **own}.values())
    headers = [*sorted(kernels_folder().glob("*.cuh")), *sorted(HERE.glob("*.h")), OPERATOR / "call.h"]
    common = hashlib.sha256(b"".join(path.read_bytes() for path in headers) + " ".join(FLAGS).encode())

    def compiled(source: Path) -> Path:
        key = common.copy()
        key.update(source.read_bytes())
        made = folder / f"{source.stem}-{key.hexdigest()[:16]}.o"
        if not made.exists():
            _run([tools.compiler, *FLAGS, f"-I{HERE}", f"-I{OPERATOR}", f"-I{kernels_folder()}", "-x", "c++", "-c",
                  str(source)], made)
        return made

    with alone(folder / "lock", "Compiling the CUDA emulator"):
        with ThreadPoolExecutor(machine.available_cores()) as pool:
            objects = list(pool.map(compiled, sources))
        key = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
        made = folder / f"kernels-{key}.so"
        if not made.exists():
            _run([tools.compiler, "-shared", *map(str, objects)], made)
    found = ctypes.CDLL(str(made))
    found.jl_launches.restype = ctypes.c_int64
    return found


def _run(command: list[str], made: Path) -> None:
    """In place only when it is whole."""
    part = made.with_suffix(".part")
    done = subprocess.run([*command, "-o", str(part)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout}")
    part.replace(made)
