"""Places the installed oneDNN package where Jittor looks for it, so that Jittor never downloads it."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Callable

from jittor_lora.errors import UserError

HEADERS = "onednn-devel-cpu-gomp"
LIBRARY = "onednn-cpu-gomp"
VERSION = "2022.2.1"
INSTALL = f'pip install "{HEADERS}=={VERSION}"'
# Jittor's linker flag asks for libmkldnn.so; the library's own soname, needed at load, is libdnnl.so.2.
LINKS = ("libdnnl.so.2", "libdnnl.so", "libmkldnn.so")

Find = Callable[[str], metadata.Distribution]


def folder(jittor_home: Path) -> Path:
    """Where Jittor 1.3.11 expects oneDNN on Linux x86_64."""
    return jittor_home / ".cache" / "jittor" / "mkl" / "dnnl_lnx_2.2.0_cpu_gomp"


def is_served() -> bool:
    """Whether the package index has oneDNN for this platform."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def is_placed(target: Path) -> bool:
    """Whether headers and library exist and no link dangles; a downloaded oneDNN counts too."""
    needed = [target / "include" / "dnnl.h", target / "include" / "oneapi" / "dnnl" / "dnnl.hpp"]
    return all(path.is_file() for path in needed + [target / "lib" / name for name in LINKS])


def place(jittor_home: Path, find: Find = metadata.distribution) -> bool:
    """Put the installed oneDNN into Jittor's cache unless it has a working one. Returns whether that was done.

    It outlives the virtual environment. Safe when several processes start together.

    Raises:
        UserError: the packages are not installed, or the cache folder cannot be written.
    """
    target = folder(jittor_home)
    if is_placed(target):
        return False
    headers, library = installed(find)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / "placing.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_placed(target):
                return False
            _replace(target, headers, library)
    except OSError as error:
        raise UserError(f"{target}: oneDNN cannot be placed there ({error.strerror or error}). "
                        "Free space, or set JITTOR_HOME to a writable folder.") from error
    return True


def installed(find: Find = metadata.distribution) -> tuple[dict[str, Path], Path]:
    """Headers (path below `include/` -> file) and the shared library of the installed packages.

    Raises:
        UserError: a package, its file list or its files are missing.
    """
    headers = {}
    for entry, path in _files(HEADERS, find):
        parts = entry.parts
        if "include" in parts and path.is_file():
            headers["/".join(parts[parts.index("include") + 1:])] = path
    libraries = [path for entry, path in _files(LIBRARY, find) if entry.name == LINKS[0] and path.is_file()]
    if "dnnl.h" not in headers or not libraries:
        raise UserError(f"oneDNN, which Jittor multiplies matrices with, is installed without its files. "
                        f"Fix it with: pip install --force-reinstall --no-deps "
                        f'"{HEADERS}=={VERSION}" "{LIBRARY}=={VERSION}"')
    return headers, libraries[0]


def _files(name: str, find: Find) -> list[tuple[metadata.PackagePath, Path]]:
    try:
        found = find(name)
    except metadata.PackageNotFoundError:
        raise UserError(f"oneDNN, which Jittor multiplies matrices with, is missing: package {name}. "
                        f"Install it with: {INSTALL}") from None
    return [(entry, Path(str(found.locate_file(entry))).resolve()) for entry in found.files or []]


def _replace(target: Path, headers: dict[str, Path], library: Path) -> None:
    # Jittor uses the first folder whose name starts with "dnnl", so temporary names must not.
    work = Path(tempfile.mkdtemp(prefix=".placing-", dir=target.parent))
    try:
        for name, path in headers.items():
            _link_or_copy(path, work / "new" / "include" / name)
        _link_or_copy(library, work / "new" / "lib" / LINKS[0])
        for name in LINKS[1:]:
            (work / "new" / "lib" / name).symlink_to(LINKS[0])
        if os.path.lexists(target):
            os.rename(target, work / "old")
        os.rename(work / "new", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _link_or_copy(path: Path, place: Path) -> None:
    """The same file at `place`: a hard link if possible, else a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)
