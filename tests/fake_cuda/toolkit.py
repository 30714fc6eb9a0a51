"""A CUDA toolkit whose libraries compute nothing: Jittor compiles with the real nvcc, launches, and each call counts.

    python tests/fake_cuda/toolkit.py FOLDER

makes it and prints the variables to export. It needs nvcc, cuBLAS and cuRAND with headers: pip install -e '.[cuda]'.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple

from jittor_lora.system import cuda
from jittor_lora.system.cuda_driver import Card, Driver

HERE = Path(__file__).parent
NEWEST = (99, 0)  # what the fake driver runs, if it is asked whether parts can be found
# Library -> the headers that declare its functions.
HEADERS = {
    "cudart": ["cuda_runtime_api.h", "crt/host_runtime.h", "crt/device_functions.h"],
    "cublas": ["cublas_api.h"],
    "cublasLt": ["cublasLt.h"],
    "curand": ["curand.h"],
}
DECLARED = {"cudart": r"(?:CUDARTAPI|CUDARTAPI_CDECL)\s+(_{0,2}cuda\w+)\s*\(", "cublas": r"\b(cublas\w+)\s*\(",
            "cublasLt": r"\b(cublasLt\w+)\s*\(", "curand": r"\b(curand[A-Z]\w+)\s*\("}
DEFINED = re.compile(r"^[\w][\w *]*?[ *](\w+)\((?!\()", re.MULTILINE)
# Jittor's products, and those our own library calls: a launch each.
PRODUCT = re.compile(r"gemm|Gemm|gemv|Matmul$")
KINDS = ("call", "kernel", "product", "copy")


class Counter(ctypes.Structure):
    """`fake_counter` of calls.h."""


Counter._fields_ = [("name", ctypes.c_char_p), ("calls", ctypes.c_long), ("captured", ctypes.c_long),
                    ("kind", ctypes.c_int), ("next", ctypes.POINTER(Counter))]


class Calls(NamedTuple):
    """How often each was called since the last `reset`, by name.

    Attributes:
        kernels: CUDA kernels, mangled names; a launched graph counts once, as cudaGraphLaunch.
        products: of cuBLAS.
        copies: copies and fills of memory.
        captured: kernels and products captured into graphs.
    """

    kernels: dict[str, int]
    products: dict[str, int]
    copies: dict[str, int]
    captured: dict[str, int]

    @property
    def launches(self) -> int:
        """Kernels and products."""
        return sum(self.kernels.values()) + sum(self.products.values())


def real(environ: Mapping[str, str] = os.environ) -> cuda.Cuda:
    """nvcc with the headers of CUDA, cuBLAS and cuRAND, as the package finds them for a machine with a card."""
    environ = {name: value for name, value in environ.items() if name != "nvcc_path"}
    return cuda.find(environ, lambda: Driver(NEWEST, (Card("fake", (8, 6), 0),)))


def make(folder: Path) -> Path:
    """Make the toolkit in `folder`, which must not exist. Returns the path of its nvcc."""
    found = real()
    include, libraries = folder / "include", folder / "lib64"
    for each in (include, libraries, folder / "bin"):
        each.mkdir(parents=True)
    for place in found.headers:
        for entry in place.iterdir():
            if not (include / entry.name).exists():
                (include / entry.name).symlink_to(entry)
    starter = folder / "bin" / "nvcc"
    starter.write_text(f'#!/bin/sh\nexec "{found.nvcc}" "$@"\n')
    starter.chmod(0o755)
    major = found.release[0]
    sonames = {"cudart": f"libcudart.so.{major}" + (".0" if major == 11 else ""), "cublas": f"libcublas.so.{major}",
               "cublasLt": f"libcublasLt.so.{major}", "curand": "libcurand.so.10"}
    for name, soname in sonames.items():
        stubs = libraries / f"{name}_stubs.c"
        stubs.write_text(_stubs(name, include))
        _compile([HERE / f"{name}.c", stubs], libraries / soname, include,
                 () if name == "cudart" else (libraries / sonames["cudart"],))
        (libraries / f"lib{name}.so").symlink_to(soname)
        stubs.unlink()
    _compile([HERE / "cuda.c"], libraries / "libcuda.so.1", include)
    (libraries / "libcuda.so").symlink_to("libcuda.so.1")
    return starter


def variables(nvcc: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to set so that a process takes the toolkit of `nvcc` for CUDA and its device for a GPU."""
    libraries = str(nvcc.parent.parent / "lib64")
    return {"nvcc_path": str(nvcc),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [libraries, environ.get("LD_LIBRARY_PATH", "")]))}


def calls() -> Calls:
    """What this process, whose Jittor uses the toolkit, has called."""
    found = Calls({}, {}, {}, {})
    for name, kind, count, captured in _counters():
        table = {"kernel": found.kernels, "product": found.products, "copy": found.copies}.get(kind)
        if table is not None and count:
            table[name] = table.get(name, 0) + count
        if captured and kind != "call":
            found.captured[name] = found.captured.get(name, 0) + captured
    return found


def reset() -> None:
    """Begin to count anew."""
    _runtime().fake_reset()


def _counters() -> Iterator[tuple[str, str, int, int]]:
    runtime = _runtime()
    runtime.fake_counters.restype = ctypes.POINTER(Counter)
    each = runtime.fake_counters()
    while each:
        counter = each.contents
        yield counter.name.decode(), KINDS[counter.kind], counter.calls, counter.captured
        each = counter.next


def _runtime() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(os.environ["LD_LIBRARY_PATH"].split(os.pathsep)[0]) / "libcudart.so"))


def _stubs(name: str, include: Path) -> str:
    """Functions that do nothing but count, for all that the library's headers declare and its file here does not."""
    texts = [(include / header).read_text(errors="replace") for header in HEADERS[name] if (include / header).is_file()]
    declared = {found for text in texts for found in re.findall(DECLARED[name], text)}
    defined = set(DEFINED.findall((HERE / f"{name}.c").read_text()))
    lines = ['#include "calls.h"']
    for each in sorted(declared - defined):
        kind = "FAKE_PRODUCT" if PRODUCT.search(each) else "FAKE_CALL"
        lines.append(f'int {each}(void) {{ CALLED({kind}, "{each}"); return 0; }}')
    return "\n".join(lines) + "\n"


def _compile(sources: list[Path], output: Path, include: Path, libraries: tuple[Path, ...] = ()) -> None:
    subprocess.run(["gcc", "-w", "-O1", "-fno-builtin", "-shared", "-fPIC", *sources, "-o", output, f"-I{include}",
                    f"-I{HERE}", f"-Wl,-soname,{output.name}", *libraries, "-Wl,-rpath,$ORIGIN"], check=True)


if __name__ == "__main__":
    for variable, value in variables(make(Path(sys.argv[1]).absolute())).items():
        print(f"export {variable}={value}")
