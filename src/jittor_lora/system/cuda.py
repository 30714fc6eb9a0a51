"""Finds CUDA as Jittor needs it: nvcc, headers and libraries, a driver and a device. Nothing here imports Jittor.

The parts may lie apart: in a toolkit, in Debian's system folders, in a conda environment, in NVIDIA's packages of the
Python index, which torch brings. `cuda_home` puts them together for Jittor.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Mapping, Sequence

from jittor_lora.files.untrusted import load_json, read_input
from jittor_lora.system import cuda_driver
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
        problem: why it cannot be used, empty if it can.
        archs: the architectures nvcc compiles for, as in sm_86.
        headers: the folders with CUDA's headers, but for the system's.
        libraries: name, such as "cublas" -> the file.
        driver: the driver with its devices.
        convolutions: whether all that Jittor's convolutions need is there.
        cudnn: the version of the cuDNN found, empty if none.
    """

    nvcc: str = ""
    version: str = ""
    problem: str = ""
    archs: tuple[int, ...] = ()
    headers: tuple[Path, ...] = ()
    libraries: Mapping[str, Path] = field(default_factory=dict)
    driver: Driver = Driver()
    convolutions: bool = False
    cudnn: str = ""

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
    if not found:
        return Cuda(problem="no nvcc found")
    driver = ask()
    if driver.problem:
        return Cuda(found[0], problem=driver.problem, driver=driver)
    checked = []
    for nvcc in dict.fromkeys(found):
        checked.append(_check(nvcc, packages, driver))
        if checked[-1].usable:
            return checked[-1]
    return checked[0]


def original(nvcc: str) -> str:
    """The nvcc that a folder put together here starts; any other nvcc is its own."""
    note = Path(nvcc).parent.parent / NOTE
    if not nvcc or not note.is_file():
        return nvcc
    return str(load_json(read_input(note, LARGEST_NOTE))["nvcc"])


def _check(nvcc: str, packages: Sequence[Path], driver: Driver) -> Cuda:
    text = _say(nvcc, "--version")
    release = re.search(r"release (\d+)\.(\d+)", text)
    if not release:
        return Cuda(nvcc, problem="it does not run", driver=driver)
    version = ".".join(release.groups())
    major, minor = map(int, release.groups())
    if (major, minor) < OLDEST:
        return Cuda(nvcc, version, f"CUDA {version} is older than {OLDEST[0]}", driver=driver)
    homes = _homes(nvcc)
    headers = [folder for home in homes for folder in (home / "include", home / TARGET / "include") if folder.is_dir()]
    headers += [folder / "include" for folder in packages if (folder / "include").is_dir()]
    places = [folder for home in homes for folder in (home / "lib64", home / TARGET / "lib", home / "lib")]
    libraries = _libraries((*NEEDED, *FOR_CONVOLUTIONS), [*places, SYSTEM_LIBRARIES], packages, major)
    lacking = _lacking(NEEDED, headers, libraries)
    cudnn = _cudnn_version([*headers, SYSTEM_HEADERS])
    archs = tuple(sorted(int(arch) for arch in re.findall(r"compute_(\d+)\b", _say(nvcc, "--list-gpu-arch"))))
    found = Cuda(nvcc, version, "", archs, tuple(dict.fromkeys(path.resolve() for path in headers)), libraries, driver,
                 cudnn.startswith("8.") and not _lacking(FOR_CONVOLUTIONS, headers, libraries), cudnn)
    problem = f"{', '.join(lacking)} not found" if lacking else _mismatch(found)
    return Cuda(**{**vars(found), "problem": problem})


def _mismatch(cuda: Cuda) -> str:
    """Why driver, devices and nvcc do not go together, empty if they do."""
    newest = cuda.driver.cuda
    if newest[0] < cuda.release[0]:
        return f"the driver runs CUDA up to {newest[0]}.{newest[1]}, and this is {cuda.version}"
    for card in cuda.cards:
        if cuda.archs and card.arch < cuda.archs[0]:
            return f"CUDA {cuda.version} no longer compiles for the {card}"
    return ""


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


def _libraries(names: Iterable[str], places: Sequence[Path], packages: Sequence[Path], major: int) -> dict[str, Path]:
    """The files of these libraries. Packages, which have no unversioned names, count if they are of CUDA `major`."""
    found = {}
    cublas = [folder for folder in packages for file in folder.glob(f"lib/libcublas.so.{major}*")]
    ours = [folder / "lib" for folder in packages if cublas]
    for name in names:
        plain = [place / f"lib{name}.so" for place in places]
        numbered = [path for place in ours for path in sorted(place.glob(f"lib{name}.so.*"))]
        path = next(filter(Path.is_file, [*plain, *numbered]), None)
        if path:
            found[name] = path
    return found


def _lacking(needed: Mapping[str, str], headers: Sequence[Path], libraries: Mapping[str, Path]) -> list[str]:
    """The files that are missing of libraries and their headers."""
    files = [f"lib{name}.so" for name in needed if name not in libraries]
    return files + [header for header in dict.fromkeys(needed.values())
                    if not any((folder / header).is_file() for folder in (*headers, SYSTEM_HEADERS))]


def _cudnn_version(headers: Sequence[Path]) -> str:
    """The version in cuDNN's header, such as "8.9.7"; empty if there is none."""
    for folder in headers:
        for name in ("cudnn_version.h", "cudnn.h"):
            try:
                text = (folder / name).read_text(errors="replace")
            except OSError:
                continue
            numbers = [re.search(rf"#define CUDNN_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCHLEVEL")]
            if all(numbers):
                return ".".join(number.group(1) for number in numbers)
    return ""
