"""Checks whether this machine has all that Jittor and training need; each says what it found and how to fix it.

The checks are functions of plain values; `required`, `machine_checks` and `deep_checks` collect the values. Jittor is
not imported here; `deep_checks` imports it in a child process.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Mapping, Sequence

from jittor_lora.errors import UserError
from jittor_lora.system import cuda, machine, onednn
from jittor_lora.system.check import MISSING, OK, WARNING, Check
from jittor_lora.system.cuda_checks import check_cuda, check_driver

OLDEST_PYTHON, NEWEST_PYTHON = (3, 9), (3, 12)
JITTOR = "1.3.11"
GIB = 2**30
CACHE_BYTES = GIB // 2  # Jittor's compiled files take about 100 MB; compilers need space for temporary files
RUN_BYTES = 2 * GIB  # a base model and a few checkpoints
MEMORY_BYTES = 2 * GIB  # for one compiler and the smallest models
COMFORTABLE_MEMORY_BYTES = 6 * GIB  # GPT-2 (124M) with its activations
HUB_SECONDS = 3.0
DEEP_SECONDS = 1800
SELF_TEST = "jittor_lora.tasks.self_test"  # prints what works; a process of its own, as Jittor may crash
CHINESE_FONTS = ("Noto Sans CJK", "Noto Serif CJK", "Source Han", "WenQuanYi", "SimHei", "SimSun", "Microsoft YaHei",
                 "PingFang", "Heiti", "Droid Sans Fallback", "AR PL")


def check_python(version: Sequence[int]) -> Check:
    found = ".".join(map(str, version[:3]))
    if OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        return Check("Python", OK, found)
    return Check("Python", MISSING, f"{found}; Jittor needs numpy<2, so Python 3.9 to 3.12",
                 "python3.11 -m venv .venv, or conda create -n jittor-lora python=3.11")


def check_numpy(version: str | None) -> Check:
    if version is None:
        return Check("numpy", MISSING, "not installed", 'pip install "numpy<2"')
    if int(version.split(".")[0]) >= 2:
        return Check("numpy", MISSING, f"{version}; Jittor needs numpy<2", 'pip install "numpy<2"')
    return Check("numpy", OK, version)


def check_jittor(version: str | None) -> Check:
    mend = f'pip install "jittor=={JITTOR}.*"'
    if version is None:
        return Check("Jittor", MISSING, "not installed", mend)
    if not version.startswith(JITTOR + "."):
        return Check("Jittor", WARNING, f"{version}; tested with {JITTOR}", mend)
    return Check("Jittor", OK, version)


def check_compiler(path: str, version: str) -> Check:
    if not path:
        return Check("C++ compiler", MISSING, "no g++",
                     "Debian, Ubuntu: apt-get install g++; CentOS, Fedora: yum install gcc-c++; "
                     "conda: conda install -c conda-forge gxx")
    if not version:
        return Check("C++ compiler", MISSING, f"{path} does not run", "apt-get install --reinstall g++")
    return Check("C++ compiler", OK, f"{path} {version}")


def check_headers(config: str, header: bool) -> Check:
    """`config`: the path of python3.x-config, empty if none; `header`: whether its folders have Python.h."""
    name = f"python3.{sys.version_info.minor}"
    mend = (f"Debian, Ubuntu: apt-get install {name}-dev; CentOS, Fedora: yum install {name}-devel; or export "
            f"python_config_path=/path/to/{name}-config")
    if not config:
        return Check("Python headers", MISSING, f"no {name}-config", mend)
    if not header:
        return Check("Python headers", MISSING, f"no folder from {config} has Python.h", mend)
    return Check("Python headers", OK, config)


def check_onednn(placed: bool, problem: str, served: bool) -> Check:
    """`problem`: why the installed packages are unusable, empty if they work; `served`: whether this platform has
    packages."""
    if placed:
        return Check("oneDNN", OK, "in Jittor's cache")
    if not served:
        return Check("oneDNN", WARNING, "no package for this platform; matrix products are several times slower",
                     "export use_mkl=1 to let Jittor download it")
    if problem:
        return Check("oneDNN", MISSING, "not installed", onednn.INSTALL)
    return Check("oneDNN", OK, "installed; linked into Jittor's cache on the first run")


def check_disk(name: str, folder: Path, free: int, needed: int) -> Check:
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if free >= needed:
        return Check(name, OK, found)
    status = MISSING if free < needed // 4 else WARNING
    return Check(name, status, f"{found}; about {needed / GIB:.1f} GiB needed",
                 "free space, or set JITTOR_HOME (for the cache) or --output (for runs) to a folder on another disk")


def check_memory(total: int) -> Check:
    found = f"{total / GIB:.1f} GiB"
    if total < MEMORY_BYTES:
        return Check("memory", MISSING, f"{found}; at least {MEMORY_BYTES / GIB:.0f} GiB needed",
                     "use a machine with more memory, or add swap")
    if total < COMFORTABLE_MEMORY_BYTES:
        return Check("memory", WARNING, f"{found}; enough for small models only", "use a smaller base or batch")
    return Check("memory", OK, found)


def check_cores(available: int, total: int) -> Check:
    return Check("cores", OK, str(available) if available == total else f"{available} of {total} usable")


def check_cpu(model: str, flags: frozenset[str], x86: bool) -> Check:
    sets = [name for name in ("avx", "avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    found = f"{model} ({', '.join(sets) or 'no AVX'}" + ("" if machine.multiplies_bf16(flags) else "; no bf16") + ")"
    if x86 and "avx2" not in flags:
        return Check("processor", WARNING, f"{found}; without AVX2 everything is slow", "use a newer machine")
    return Check("processor", OK, found if x86 else model)


def check_mpi(mpicc: str, ranks: str | None) -> Check:
    """`ranks`: the size of this process's MPI job, None outside one."""
    if not mpicc:
        return Check("MPI", MISSING if ranks else WARNING, "no mpicc; needed only for training in several processes",
                     "Debian, Ubuntu: apt-get install openmpi-bin libopenmpi-dev")
    return Check("MPI", OK, mpicc + (f", {ranks} processes" if ranks else ""))


def check_cache(folder: Path, warm: bool) -> Check:
    if warm:
        return Check("Jittor cache", OK, f"compiled, in {folder}")
    return Check("Jittor cache", OK, f"empty: the first command compiles Jittor for 1 to 3 minutes into {folder}")


def check_fonts(families: Sequence[str]) -> Check:
    """`families`: the font families that plots can use."""
    chinese = sorted({name for name in families if name.startswith(CHINESE_FONTS)})
    if chinese:
        return Check("Chinese font", OK, chinese[0])
    return Check("Chinese font", WARNING, "none; plots can only have English labels",
                 "Debian, Ubuntu: apt-get install fonts-noto-cjk; "
                 "CentOS, Fedora: yum install google-noto-sans-cjk-fonts")


def check_import(status: int, output: str) -> Check:
    """`status`, `output`: exit status and last lines of a child process that imports Jittor and multiplies matrices."""
    if status == 0:
        return Check("Jittor import", OK, output.strip().splitlines()[-1] if output.strip() else "works")
    return Check("Jittor import", MISSING, output.strip() or f"exit status {status}",
                 "fix the errors above; if there are none, empty the cache: python -m jittor_utils.clean_cache all")


def check_hub(endpoint: str, problem: str) -> Check:
    if not problem:
        return Check("model hub", OK, f"{endpoint} answers")
    return Check("model hub", WARNING, f"{endpoint}: {problem}",
                 "export HF_ENDPOINT to a mirror, use a local folder as base, or smollm2-135m, which comes from PyPI")


def required(environ: Mapping[str, str], jittor_home: Path) -> list[Check]:
    """The checks without which Jittor cannot be imported. Fast: starts no program."""
    path = machine.compiler(environ)
    return [
        check_python(sys.version_info),
        check_numpy(_version("numpy")),
        check_jittor(_version("jittor")),
        check_compiler(path, version="not asked"),
        check_headers(environ.get("python_config_path") or machine.python_config(), header=True),
        _onednn(jittor_home, environ),
        *_cuda(environ),
        _mpi(environ),
    ]


def machine_checks(environ: Mapping[str, str], jittor_home: Path, here: Path) -> list[Check]:
    """All checks that take only seconds; `here` is the folder for runs."""
    path = machine.compiler(environ)
    config = environ.get("python_config_path") or machine.python_config()
    cache = jittor_home / ".cache" / "jittor"
    return [
        check_python(sys.version_info),
        check_compiler(path, machine.version_of(path)),
        check_headers(config, machine.has_python_header(config)),
        check_numpy(_version("numpy")),
        check_jittor(_version("jittor")),
        _onednn(jittor_home, environ),
        check_cache(cache, is_compiled(cache)),
        check_disk("disk, cache", cache, _free(cache), CACHE_BYTES),
        check_disk("disk, here", here, _free(here), RUN_BYTES),
        check_memory(machine.total_memory()),
        check_cpu(machine.cpu_model(), machine.cpu_flags(), machine.is_x86()),
        check_cores(machine.available_cores(), machine.all_cores()),
        _mpi(environ),
        *_cuda(environ),
        check_fonts(font_families()),
    ]


def deep_checks(environ: Mapping[str, str]) -> list[Check]:
    """Import Jittor in a child process (minutes if its cache is empty) and query the model hub."""
    from huggingface_hub import constants

    return [check_import(*try_import(environ)), check_hub(constants.ENDPOINT, hub_problem(constants.ENDPOINT))]


def try_import(environ: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and the end of the output of a child process that imports Jittor; progress goes to the screen."""
    done = subprocess.run([sys.executable, "-m", SELF_TEST], stdout=subprocess.PIPE, env=dict(environ),
                          stdin=subprocess.DEVNULL, timeout=DEEP_SECONDS)
    return done.returncode, done.stdout.decode(errors="replace")[-2000:]


def hub_problem(endpoint: str, seconds: float = HUB_SECONDS) -> str:
    """Why `endpoint` does not answer within `seconds`; empty if it answers, even with an HTTP error."""
    problems = [f"no answer within {seconds:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=seconds).close()
            problems.append("")
        except urllib.error.HTTPError:
            problems.append("")
        except (OSError, ValueError) as error:
            problems.append(str(getattr(error, "reason", error)))

    # In a thread, because urlopen's time-out does not cover name resolution.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[-1]


def is_compiled(cache: Path) -> bool:
    """Whether Jittor was compiled in `cache` for this Python; ignores settings that change its flags."""
    return any(cache.glob(f"jt{JITTOR}/*/py{platform.python_version()}/*/*/*/*/compiled-*"))


def font_families() -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from matplotlib import font_manager

    return [font.name for font in font_manager.fontManager.ttflist]


def _onednn(jittor_home: Path, environ: Mapping[str, str]) -> Check:
    if environ.get("use_mkl", "1") != "1":
        return Check("oneDNN", WARNING, "disabled by use_mkl; matrix products are several times slower",
                     "unset use_mkl")
    placed = onednn.is_placed(onednn.folder(jittor_home))
    problem = ""
    if not placed:
        try:
            onednn.installed()
        except UserError as error:
            problem = str(error)
    return check_onednn(placed, problem, onednn.is_served())


def _mpi(environ: Mapping[str, str]) -> Check:
    return check_mpi(shutil.which("mpicc", path=environ.get("PATH")) or "", environ.get("OMPI_COMM_WORLD_SIZE"))


def _cuda(environ: Mapping[str, str]) -> list[Check]:
    if environ.get("nvcc_path") == "":
        return [Check("CUDA", OK, "not used: nvcc_path is empty")]
    found = cuda.find(environ)
    return [check_driver(found.driver, bool(found.nvcc), machine.is_wsl()), check_cuda(found, "nvcc_path" in environ)]


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
