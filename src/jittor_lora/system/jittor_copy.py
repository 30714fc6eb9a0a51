"""One Jittor for all virtual environments: a copy in its own cache, imported instead of the installed one.

Jittor's compile commands, and hence its cache keys, contain the paths of its sources, of Python's headers and of the
interpreter. These differ between environments, and vanish with them. Here they are in a folder named by a hash of their
contents: the same Jittor, Python and compiler are compiled once, whatever environment imports them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write
from jittor_lora.files.untrusted import load_json, read_input
from jittor_lora.system import core_units
from jittor_lora.system.locks import alone

PACKAGES = ("jittor", "jittor_utils")
INTERPRETER = "JITTOR_LORA_PYTHON"  # the variable that tells `Copy.python` which Python to run
LARGEST_NOTE = 1 << 20  # bytes

_PYTHON = r"""#!/bin/sh
# Python, for Jittor's helpers. asm_tuner.py edits the assembly of operators that ask for it: it imports Jittor's
# utilities and runs the compiler twice. For the others this runs the compiler.
case $1 in
*/asm_tuner.py)
    if ! grep -q @begin "$3"; then
        compiler=${{2#--cc_path=}}
        shift 2
        exec "$compiler" "$@"
    fi ;;
esac
# With a private HOME: a JITTOR_HOME that differs from HOME becomes the default of all later processes.
HOME={private_home} JITTOR_HOME={home} exec "${{{interpreter}:-python3}}" "$@"
"""
_CONFIG = r"""#!/bin/sh
# python3-config, for Jittor.
case $1 in
--includes) echo {includes} ;;
--extension-suffix) echo {suffix} ;;
*) exec {config} "$@" ;;
esac
"""


@dataclass(frozen=True)
class Copy:
    """A folder that Jittor is imported from and compiles with, the same for every environment.

    `compiler` is the program for Jittor's `cc_path`; `grouped` says whether it compiles the core as large units.
    """

    folder: Path
    compiler: str
    grouped: bool

    @property
    def site(self) -> Path:
        """The folder to import Jittor from."""
        return self.folder / "site"

    @property
    def python(self) -> Path:
        """The Python that Jittor runs its helpers with."""
        return self.folder / "bin" / "python"

    @property
    def python_config(self) -> Path:
        return self.folder / "bin" / "python3-config"

    @property
    def private_home(self) -> Path:
        """A home whose `.cache/jittor/config.json` already has the note that Jittor would write."""
        return self.folder / "home"

    @property
    def plain(self) -> Path:
        """While this file exists, the core is compiled file by file."""
        return self.folder / "units" / core_units.PLAIN

    @contextlib.contextmanager
    def imported_from(self) -> Iterator[None]:
        """Within the block, imports of Jittor find this copy."""
        sys.path.insert(0, str(self.site))
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(str(self.site))


def place(home: Path, compiler: str, config: str, version: str, grouped: bool) -> Copy | None:
    """The copy of the installed Jittor, created if it does not exist yet.

    Args:
        home: the folder whose `.cache/jittor` Jittor uses.
        compiler: path of the C++ compiler.
        config: path of `python3.x-config`.
        version: Jittor's.
        grouped: compile the core as large units if `version` is the one tested with them.

    Returns:
        None if `home` has characters that Jittor's commands do not quote, such as spaces.

    Raises:
        UserError: Jittor or Python's headers are not found, or the cache cannot be written.
    """
    parent = home / ".cache" / "jittor" / "jittor_lora"
    if shlex.quote(str(parent)) != str(parent):
        print(f"{home}: Jittor cannot handle some characters in this path, so each virtual environment compiles its "
              "own Jittor. Set JITTOR_HOME to a folder without spaces.", file=sys.stderr)
        return None
    grouped = grouped and version.startswith(core_units.VERSION + ".")
    packages = {name: _package(name) for name in PACKAGES}
    includes = [Path(flag[2:]) for flag in dict.fromkeys(_ask(config, "--includes").split()) if flag.startswith("-I")]
    suffix = _ask(config, "--extension-suffix")
    # A folder with other headers too, such as /usr/include, is not copied.
    headers = {str(number): path for number, path in enumerate(includes) if path.name.startswith("python")}
    others = [path for path in includes if path not in headers.values()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        contents = [_digest(folder, parent) for folder in (*packages.values(), *headers.values())]
        rules = [_PYTHON, _CONFIG, *([Path(core_units.__file__).read_text("utf-8")] if grouped else [])]
        parts = [*contents, *map(str, others), suffix, compiler, *rules]
        folder = parent / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        copy = Copy(folder, str(folder / "bin" / Path(compiler).name) if grouped else compiler, grouped)
        if not folder.is_dir():
            with alone(parent / "copying.lock", "Copying Jittor"):
                if not folder.is_dir():
                    scripts = _scripts(copy, home, [*(folder / "include" / name for name in headers), *others], suffix,
                                       compiler, config)
                    _create(copy, home, packages, headers, scripts)
    except OSError as error:
        raise UserError(f"{parent}: Jittor cannot be copied there ({error.strerror or error}). "
                        "Free space, or set JITTOR_HOME to a writable folder.") from error
    return copy


def _scripts(copy: Copy, home: Path, includes: Sequence[Path], suffix: str, compiler: str,
             config: str) -> dict[str, str]:
    """The programs of the copy's `bin`: name -> text."""
    flags = " ".join(f"-I{path}" for path in includes)
    texts = {"python": _PYTHON.format(private_home=copy.private_home, home=home, interpreter=INTERPRETER),
             "python3-config": _CONFIG.format(includes=flags, suffix=suffix, config=config)}
    return {**texts, Path(compiler).name: core_units.program(compiler)} if copy.grouped else texts


def _create(copy: Copy, home: Path, packages: Mapping[str, Path], headers: Mapping[str, Path],
            scripts: Mapping[str, str]) -> None:
    for leftover in copy.folder.parent.glob(".copying-*"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".copying-", dir=copy.folder.parent))
    try:
        for below, folders in (("site", packages), ("include", headers)):
            for name, folder in folders.items():
                for path in _files(folder):
                    _write(work / below / name / path, (folder / path).read_bytes())
        for name, text in scripts.items():
            _write(work / "bin" / name, text.encode())
            (work / "bin" / name).chmod(0o755)
        note = json.dumps({"JITTOR_HOME": os.path.abspath(home)})
        _write(work / copy.private_home.name / ".cache" / "jittor" / "config.json", note.encode())
        if copy.grouped:
            core_units.write(work / "units", packages["jittor"])
        work.chmod(0o755)
        os.sync()  # the folder's name promises its contents, which must be on disk first
        try:
            os.rename(work, copy.folder)
        except OSError:
            if not copy.folder.is_dir():  # by another host, on a file system without locks
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"Jittor's package {name} is not installed as a folder: pip install --force-reinstall jittor")
    return Path(next(iter(found.submodule_search_locations))).resolve()


def _ask(config: str, what: str) -> str:
    try:
        return subprocess.run([config, what], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{config} {what} failed ({error}). `jittor-lora doctor` checks the Python headers.") from error


def _files(folder: Path) -> list[Path]:
    """The files below `folder`, as relative paths, without Python's bytecode."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        found += [(Path(place) / name).relative_to(folder) for name in names]
    return sorted(found)


def _digest(folder: Path, notes: Path) -> str:
    """A hash of all files below `folder`, cached in `notes` until one of their sizes or times changes."""
    files = _files(folder)
    status = [(path, os.stat(folder / path)) for path in files]
    seen = hashlib.sha256("\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in status).encode())
    note = notes / f"seen-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(UserError, ValueError, KeyError, TypeError):
        noted = load_json(read_input(note, LARGEST_NOTE))
        if noted["seen"] == seen.hexdigest():
            return str(noted["content"])
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path} {hashlib.sha256((folder / path).read_bytes()).hexdigest()}\n".encode())
    with atomic_write(note) as stream:
        json.dump({"seen": seen.hexdigest(), "content": content.hexdigest()}, stream)
    return content.hexdigest()
