"""Compiles the CUDA kernels of this folder into one library, once for this machine's devices, and loads it."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Sequence, TextIO

from jittor_lora.errors import UserError
from jittor_lora.ops.cuda import kernels_folder
from jittor_lora.ops.operator import build
from jittor_lora.system.runtime import jt, kernel_tools

ARCHITECTURES = (75, 80, 86, 89, 90, 120)  # RTX 20, A100, RTX 30, RTX 40, H100, RTX 50
# Without --use_fast_math: divisions and roots are exact, and denormals, NaN and infinities are kept.
FLAGS = ("-O3", "-std=c++17", "--cudart=shared", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas")
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


class CudaTools(NamedTuple):
    """What the kernels are compiled with.

    Attributes:
        nvcc: beside it lie include/ and lib64/ with CUDA's and cuBLAS's headers and libraries.
        compiler: of C++, for the code around the kernels.
        cache: where the library is kept.
    """

    nvcc: Path
    compiler: str
    cache: Path

    @property
    def libraries(self) -> Path:
        return self.nvcc.parent.parent / "lib64"


def cuda_tools() -> CudaTools:
    """Those that Jittor uses."""
    tools = kernel_tools()
    return CudaTools(Path(jt.compiler.nvcc_path), tools.compiler, tools.cache)


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The compiled kernels; their symbols are visible to Jittor's operators.

    Raises:
        UserError: there is no device, or they cannot be compiled, or do not run on the device.
    """
    tools = cuda_tools()
    kernels = ctypes.CDLL(str(compiled(tools, sys.stderr, [capability(tools)])), ctypes.RTLD_GLOBAL)
    kernels.jl_launches.restype = ctypes.c_int64
    kernels.jl_device_problem.restype = ctypes.c_char_p
    problem = kernels.jl_device_problem()
    if problem:
        raise UserError(f"The CUDA kernels do not run on this device: {problem.decode()}\n"
                        "`jittor-lora doctor` checks driver and CUDA.")
    return kernels


def capability(tools: CudaTools) -> int:
    """The compute capability of the current device, as in sm_86.

    Raises:
        UserError: CUDA's runtime finds none.
    """
    runtime = ctypes.CDLL(str(tools.libraries / "libcudart.so"))
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    device, parts = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    status = runtime.cudaGetDevice(ctypes.byref(device))
    for part, attribute in zip(parts, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)):
        status = status or runtime.cudaDeviceGetAttribute(ctypes.byref(part), attribute, device)
    if status:
        raise UserError(f"CUDA finds no device: {runtime.cudaGetErrorString(status).decode()}\n"
                        "`jittor-lora doctor` checks driver and CUDA.")
    return parts[0].value * 10 + parts[1].value


def compiled(tools: CudaTools, screen: TextIO, architectures: Sequence[int] = ARCHITECTURES) -> Path:
    """The library in the cache, compiled if it is missing, for devices of these compute capabilities (86 for 8.6) and,
    as PTX, which the driver compiles, for later ones."""
    home = tools.nvcc.parent.parent
    command = [str(tools.nvcc), *FLAGS, f"-ccbin={tools.compiler}", *_targets(tools, architectures)]
    libraries = [f"-L{tools.libraries}", "-lcublasLt", f"-Xlinker=-rpath,{tools.libraries}"]
    recipe = build.Recipe("CUDA kernels", "jittor_lora_cuda", "about a minute on 2 cores", kernels_folder(), "*.cu",
                          [*command, f"-I{build.OPERATOR}", f"-I{home / 'include'}"], [*command, "-shared"], libraries,
                          [_say(tools, "--version")])
    return build.library(recipe, tools.cache, screen)


def _targets(tools: CudaTools, architectures: Sequence[int]) -> list[str]:
    """Flags for these architectures as far as nvcc knows them, and PTX of the newest."""
    known = sorted(int(number) for number in re.findall(r"compute_(\d+)\b", _say(tools, "--list-gpu-arch")))
    wanted = sorted({*architectures} & {*known} if known else {*architectures})
    newest = max(architectures)
    virtual = max((number for number in known if number <= newest), default=newest)
    return [*(f"-gencode=arch=compute_{number},code=sm_{number}" for number in wanted),
            f"-gencode=arch=compute_{virtual},code=compute_{virtual}"]


def _say(tools: CudaTools, argument: str) -> str:
    """What nvcc prints."""
    done = subprocess.run([str(tools.nvcc), argument], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode(errors="replace")
