"""One folder with all of CUDA that Jittor wants, and with what Jittor 1.3.11 needs to compile on it.

Jittor takes headers, libraries and compiler from `include`, `lib64` and `bin` beside each other. Here `include` and
`lib64` are links to where CUDA was found, `bin/nvcc` starts the real one, and three mends are added, none of them in
files of Jittor or CUDA:

- CUDA 13 removed two fields of `cudaDeviceProp` that Jittor reads: `jittor_cuda13.h`, for `-include`.
- Every reduction includes NPP's header, for eight numbers: `npp.h`, where NPP is not installed.
- CUB of CUDA 13 needs C++17, and Jittor asks for C++14; and it clamps what it compiles for to compute capability 9.0
  without PTX, which an RTX 50 cannot run: flags that `bin/nvcc` adds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Mapping

from jittor_lora.errors import UserError
from jittor_lora.system.cuda import NOTE, SYSTEM_HEADERS, Cuda, original
from jittor_lora.system.locks import alone

MENDS = Path(__file__).parent / "cuda_headers"
DEVICE_FIELDS, NPP = "jittor_cuda13.h", "npp.h"
CUDA13 = (13, 0)
# The newest architecture that Jittor compiles for, by the version of nvcc (compiler.py).
JITTOR_NEWEST = (((11, 0), 75), ((11, 1), 80), ((11, 8), 86))
JITTOR_NEWEST_NOW = 90

_NVCC = """#!/bin/sh
exec {nvcc} "$@" {flags}
"""


def extra_flags(cuda: Cuda) -> list[str]:
    """What nvcc must be told besides what Jittor tells it."""
    flags = ["-std=c++17"] if cuda.release >= CUDA13 else []
    newest = next((arch for version, arch in JITTOR_NEWEST if cuda.release < version), JITTOR_NEWEST_NOW)
    for arch in sorted({card.arch for card in cuda.cards}):
        if arch // 10 == min(arch, newest) // 10:
            continue  # code for a capability runs on later ones of its generation
        if arch in cuda.archs:
            flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        else:  # the driver compiles the newest that nvcc knows
            known = max((each for each in cuda.archs if each < arch), default=newest)
            flags.append(f"-gencode=arch=compute_{known},code=compute_{known}")
    return flags


def at_import(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for the time of Jittor's import alone, if its `nvcc_path` is in a folder put together here.

    A cache of its own: Jittor ends the process where flags differ from those of the last compile.
    """
    nvcc = Path(environ["nvcc_path"])
    if original(str(nvcc)) == str(nvcc):
        return {}
    home = nvcc.parent.parent
    chosen = {"cache_name": f"{environ['cache_name']}_{home.name}"}
    mend = home / "include" / DEVICE_FIELDS
    if mend.is_file():
        chosen["cc_flags"] = f" {environ.get('cc_flags', '')} -include {mend} "
    return chosen


def place(jittor_home: Path, cuda: Cuda) -> Path:
    """The folder for this CUDA, created if it does not exist yet.

    Raises:
        UserError: it cannot be written, or its path has characters that Jittor's commands do not quote.
    """
    parent = jittor_home / ".cache" / "jittor" / "jittor_lora"
    if shlex.quote(str(parent)) != str(parent):
        raise UserError(f"{parent}: Jittor cannot compile with CUDA below a path with such characters. Set JITTOR_HOME "
                        "to a folder without spaces, or nvcc_path to nothing to compute on the CPU.")
    nvcc = _NVCC.format(nvcc=shlex.quote(cuda.nvcc), flags=" ".join(map(shlex.quote, extra_flags(cuda))))
    mends = [MENDS / DEVICE_FIELDS] if cuda.release >= CUDA13 else []
    if not any((folder / NPP).is_file() for folder in (*cuda.headers, SYSTEM_HEADERS)):
        mends.append(MENDS / NPP)
    note = json.dumps({"nvcc": cuda.nvcc, "build": cuda.build, "cards": sorted({card.arch for card in cuda.cards}),
                       "headers": list(map(str, cuda.headers)),
                       "libraries": {name: str(path) for name, path in cuda.libraries.items()}}, indent=1)
    parts = [note, nvcc, *(path.read_text() for path in mends)]
    home = parent / f"cuda{cuda.version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if not home.is_dir():
            with alone(parent / "cuda.lock", "Preparing CUDA"):
                if not home.is_dir():
                    _create(home, _links(cuda), nvcc, mends, note)
    except OSError as error:
        raise UserError(f"{home}: CUDA cannot be prepared there ({error.strerror or error}). "
                        "Free space, or set JITTOR_HOME to a writable folder.") from error
    return home


def _links(cuda: Cuda) -> dict[str, Path]:
    """Path in the folder -> what it is a link to. The first of several files of a name counts."""
    links: dict[str, Path] = {}
    for folder in cuda.headers:
        for entry in sorted(folder.iterdir()):
            links.setdefault(f"include/{entry.name}", entry.resolve())
    for name, library in cuda.libraries.items():
        links[f"lib64/lib{name}.so"] = library.resolve()
        # Under its versioned names it is found at run time.
        for path in sorted(library.parent.glob(f"lib{name}.so.*")):
            links[f"lib64/{path.name}"] = path.resolve()
    return links


def _create(home: Path, links: dict[str, Path], nvcc: str, mends: list[Path], note: str) -> None:
    work = Path(tempfile.mkdtemp(prefix=".cuda-", dir=home.parent))
    try:
        for name in ("bin", "include", "lib64"):
            (work / name).mkdir()
        for name, target in links.items():
            (work / name).symlink_to(target)
        for path in mends:
            shutil.copyfile(path, work / "include" / path.name)
        (work / "bin" / "nvcc").write_text(nvcc)
        (work / "bin" / "nvcc").chmod(0o755)
        (work / NOTE).write_text(note)
        work.chmod(0o755)
        os.sync()  # the folder's name promises its contents, which must be on disk first
        try:
            os.rename(work, home)
        except OSError:
            if not home.is_dir():  # by another host, on a file system without locks
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
