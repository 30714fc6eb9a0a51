"""Finds CUDA as Jittor needs it: nvcc, headers and libraries, a driver and a device. Nothing here imports Jittor.

The parts may lie apart: in a toolkit, in Debian's system folders, in a conda environment, in NVIDIA's packages of the
Python index, which torch brings. `cuda_home` puts them together for Jittor.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Iterable, Mapping, Sequence

from jittor_lora.files.untrusted import load_json, read_input
from jittor_lora.system import cuda_driver, machine
from jittor_lora.system.cuda_driver import Card, Driver

NVCC_PLACES = ("nvcc", "/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/opt/cuda/bin/nvcc")  # as Jittor looks
SYSTEM_HEADERS = Path("/usr/include")  # which compilers search by themselves
SYSTEM_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
TARGET = Path("targets", "x86_64-linux")
OLDEST = (11, 0)  # before CUDA 11 Jittor downloads the CUB headers at import
# Matrix products and random numbers. Library -> its header.
NEEDED = {"cudart": "cuda_runtime.h", "cublas": "cublas_v2.h", "cublasLt": "cublasLt.h", "curand": "curand.h"}
# What Jittor's convolutions and Fourier transforms need besides. It knows cuDNN 8; later ones have other libraries.
CUDNN = ("cudnn", "cudnn_ops_infer", "cudnn_ops_train", "cudnn_cnn_infer", "cudnn_cnn_train")
FOR_CONVOLUTIONS = {**dict.fromkeys(CUDNN, "cudnn.h"), "cufft": "cufft.h", "cusparse": "cusparse.h"}
SECONDS = 20
NOTE = "parts.json"  # of a folder that cuda_home puts together
LARGEST_NOTE = 1 << 20  # bytes


@dataclass(frozen=True)
class Cuda:
    """The CUDA found, if any.

    Attributes:
        nvcc: the compiler's path, empty without one.
        version: nvcc's, such as "12.4".
        build: the same to the last figure, such as "12.4.131".
        problem: why it cannot be used, empty if it can.
        archs: the architectures nvcc compiles for, as in sm_86.
        headers: the folders with CUDA's headers, but for the system's.
        libraries: name, such as "cublas" -> the file.
        driver: the driver with its devices.
        lacking: names of headers and libraries that are missing.
        convolutions: whether all that Jittor's convolutions need is there.
        cudnn: the version of the cuDNN found, empty if none.
        gcc: the version of the C++ compiler, empty if unknown.
        newest_gcc: the newest g++ that nvcc compiles with, 0 if it does not say.
    """

    nvcc: str = ""
    version: str = ""
    build: str = ""
    problem: str = ""
    archs: tuple[int, ...] = ()
    headers: tuple[Path, ...] = ()
    libraries: Mapping[str, Path] = field(default_factory=dict)
    driver: Driver = Driver()
    lacking: tuple[str, ...] = ()
    convolutions: bool = False
    cudnn: str = ""
    gcc: str = ""
    newest_gcc: int = 0

    @property
    def usable(self) -> bool:
        return bool(self.nvcc) and not self.problem

    @property
    def release(self) -> tuple[int, int]:
        """`version` as numbers."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def cards(self) -> tuple[Card, ...]:
        return self.driver.cards

    @property
    def is_too_new(self) -> bool:
        """For the driver, which runs later minor versions of its CUDA too."""
        return self.release[0] > self.driver.cuda[0]

    @property
    def dropped(self) -> tuple[Card, ...]:
        """The cards that nvcc no longer compiles for."""
        return tuple(card for card in self.cards if self.archs and card.arch < self.archs[0])

    @property
    def refuses_gcc(self) -> bool:
        return bool(self.gcc and self.newest_gcc) and int(self.gcc.split(".")[0]) > self.newest_gcc


def find(environ: Mapping[str, str], ask: Callable[[], Driver] = cuda_driver.ask) -> Cuda:
    """The first usable CUDA; if there is none, the first one with what is wrong with it.

    All parts are required, because Jittor's import crashes or ends the process where one is missing.
    """
    if environ.get("nvcc_path") == "":  # the user's way to choose the CPU
        return Cuda()
    packages = _packages()
    if "nvcc_path" in environ:
        names: Sequence[str] = [original(environ["nvcc_path"])]
    else:
        names = [*NVCC_PLACES, *(str(folder / "bin" / "nvcc") for folder in packages)]
    found = [path for path in (shutil.which(name, path=environ.get("PATH")) for name in names) if path]
    driver = ask()
    if not found:
        return Cuda(problem="no nvcc found", driver=driver)
    if driver.problem:
        return Cuda(found[0], problem=driver.problem, driver=driver)
    compiler = machine.compiler(environ)
    checked = []
    for nvcc in dict.fromkeys(found):
        checked.append(_check(nvcc, packages, driver, machine.version_of(compiler) if compiler else ""))
        if checked[-1].usable:
            return checked[-1]
    return checked[0]


def original(nvcc: str) -> str:
    """The nvcc that a folder put together here starts; any other nvcc is its own."""
    note = Path(nvcc).parent.parent / NOTE
    if not os.path.isabs(nvcc) or not note.is_file():
        return nvcc
    return str(load_json(read_input(note, LARGEST_NOTE))["nvcc"])


def _check(nvcc: str, packages: Sequence[Path], driver: Driver, gcc: str) -> Cuda:
    said = re.search(r"release (\d+)\.(\d+)(?:, V([\d.]+))?", _say(nvcc, "--version"))
    if not said:
        return Cuda(nvcc, problem="it does not run", driver=driver)
    major, minor = int(said.group(1)), int(said.group(2))
    found = Cuda(nvcc, f"{major}.{minor}", said.group(3) or "", driver=driver)
    if found.release < OLDEST:
        return replace(found, problem=f"CUDA {found.version} is older than {OLDEST[0]}")
    homes, packages = _homes(nvcc), _of_major(packages, major)
    headers = [folder for home in homes for folder in (home / "include", home / TARGET / "include")
               if any((folder / name).is_file() for name in NEEDED.values())]
    headers += [folder / "include" for folder in packages if (folder / "include").is_dir()]
    places = [folder for home in homes for folder in (home / "lib64", home / TARGET / "lib", home / "lib")]
    libraries = _libraries((*NEEDED, *FOR_CONVOLUTIONS), [*places, SYSTEM_LIBRARIES], packages)
    cudnn = _cudnn_version([*headers, SYSTEM_HEADERS])
    found = replace(
        found, headers=tuple(dict.fromkeys(path.resolve() for path in headers)), libraries=libraries, cudnn=cudnn,
        archs=tuple(sorted(int(arch) for arch in re.findall(r"compute_(\d+)\b", _say(nvcc, "--list-gpu-arch")))),
        convolutions=cudnn.startswith("8.") and not _lacking(FOR_CONVOLUTIONS, headers, libraries),
        lacking=_lacking(NEEDED, headers, libraries), gcc=gcc, newest_gcc=_newest_gcc([*headers, SYSTEM_HEADERS]))
    return replace(found, problem=_problem(found))


def _problem(cuda: Cuda) -> str:
    """Why these parts cannot be used together, empty if they can."""
    if cuda.lacking:
        return f"{', '.join(cuda.lacking)} not found"
    if cuda.is_too_new:
        return f"the driver runs CUDA up to {cuda.driver.cuda[0]}.{cuda.driver.cuda[1]}, and this is {cuda.version}"
    if cuda.dropped:
        return f"CUDA {cuda.version} no longer compiles for the {cuda.dropped[0]}"
    if cuda.refuses_gcc:
        return f"CUDA {cuda.version} compiles with g++ up to {cuda.newest_gcc}, and this is {cuda.gcc}"
    return ""


def _newest_gcc(headers: Sequence[Path]) -> int:
    """The newest g++ that CUDA's own header lets compile, 0 if it does not say."""
    for folder in headers:
        with contextlib.suppress(OSError):
            limit = re.search(r"__GNUC__ > (\d+)", (folder / "crt" / "host_config.h").read_text(errors="replace"))
            return int(limit.group(1)) if limit else 0
    return 0


def _say(nvcc: str, *arguments: str) -> str:
    """What nvcc prints, empty if it does not run."""
    try:
        done = subprocess.run([nvcc, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _homes(nvcc: str) -> list[Path]:
    """The folder above nvcc's, and the one it takes its parts from, if nvcc is a script that starts another one."""
    homes = [Path(os.path.realpath(nvcc)).parent.parent]
    top = re.search(r"^#\$ TOP=(.+)$", _say(nvcc, "--dryrun", "-x", "cu", os.devnull), re.MULTILINE)
    if top:
        homes.append(Path(top.group(1).strip()).resolve())
    return [home for home in dict.fromkeys(homes) if home != Path("/usr")]


def _packages() -> list[Path]:
    """The folders of NVIDIA's packages in this environment: nvidia/cu13, or nvidia/cublas and so on."""
    spec = importlib.util.find_spec("nvidia")
    roots = map(Path, spec.submodule_search_locations or ()) if spec else ()
    return [folder for root in roots if root.is_dir() for folder in sorted(root.iterdir()) if folder.is_dir()]


def _of_major(packages: Sequence[Path], major: int) -> list[Path]:
    """Those of NVIDIA's packages that are of CUDA `major`: from 13 on in a folder of that name, before side by side."""
    ours = [folder for folder in packages if folder.name == f"cu{major}"]
    cublas = [folder for folder in packages if folder.name == "cublas"]
    if any(path for folder in cublas for path in folder.glob(f"lib/libcublas.so.{major}*")):
        ours += [folder for folder in packages if not re.fullmatch(r"cu\d+", folder.name)]
    return ours


def _libraries(names: Iterable[str], places: Sequence[Path], packages: Sequence[Path]) -> dict[str, Path]:
    """The files of these libraries; in packages they have versioned names only."""
    found = {}
    for name in names:
        plain = [place / f"lib{name}.so" for place in places]
        numbered = [path for folder in packages for path in sorted(folder.glob(f"lib/lib{name}.so.*"))]
        path = next(filter(Path.is_file, [*plain, *numbered]), None)
        if path:
            found[name] = path
    return found


def _lacking(needed: Mapping[str, str], headers: Sequence[Path], libraries: Mapping[str, Path]) -> tuple[str, ...]:
    """The files that are missing of libraries and their headers."""
    files = [f"lib{name}.so" for name in needed if name not in libraries]
    return (*files, *(header for header in dict.fromkeys(needed.values())
                      if not any((folder / header).is_file() for folder in (*headers, SYSTEM_HEADERS))))


def _cudnn_version(headers: Sequence[Path]) -> str:
    """The version in cuDNN's header, such as "8.9.7"; empty if there is none."""
    for folder in headers:
        for name in ("cudnn_version.h", "cudnn.h"):
            with contextlib.suppress(OSError):
                numbers = re.findall(r"^#define CUDNN_(?:MAJOR|MINOR|PATCHLEVEL)\s+(\d+)",
                                     (folder / name).read_text(errors="replace"), re.MULTILINE)
                if len(numbers) == 3:
                    return ".".join(numbers)
    return ""
