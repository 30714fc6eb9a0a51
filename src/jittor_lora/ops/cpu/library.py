"""Compiles the C++ kernels of this folder into one library, once for this machine, and loads it."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from pathlib import Path
from typing import TextIO

from jittor_lora.ops.cpu.interface import declare
from jittor_lora.ops.operator import build
from jittor_lora.system import machine
from jittor_lora.system.runtime import KernelTools, kernel_tools

SOURCES = Path(__file__).parent / "kernels"
# Not -Ofast, which would hide NaN. Fused multiply-adds are allowed.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-ffp-contract=fast", "-fno-math-errno",
         "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas")


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
    command = [tools.compiler, *FLAGS, f"-I{build.OPERATOR}", f"-I{tools.onednn / 'include'}"]
    libraries = [f"-L{tools.onednn / 'lib'}", "-ldnnl", f"-Wl,-rpath,{tools.onednn / 'lib'}"]
    processor = machine.cpu_model(), *sorted(machine.cpu_flags())
    recipe = build.Recipe("CPU kernels", "jittor_lora_kernels", "10 to 20 seconds", SOURCES, "*.cpp", command,
                          [*command, "-shared"], libraries, [machine.version_of(tools.compiler), *processor])
    return build.library(recipe, tools.cache, screen)
