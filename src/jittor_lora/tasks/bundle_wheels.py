"""The wheels of this package and of all it depends on, for another machine."""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

# Comes with matplotlib and huggingface_hub.
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

import jittor_lora
from jittor_lora.errors import UserError

NAME = "jittor-lora"
WITHOUT_WHEELS = ("jittor",)  # distributions that the index has only as sources; pure Python, so built here
OLDEST_MANYLINUX = 17  # manylinux_2_17 is manylinux2014
MOST_ROUNDS = 5
NOT_PACKED = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")  # of an installation
_STDERR = 2  # file descriptor: sys.stderr in a notebook has none

Pip = Callable[..., None]


class Target(NamedTuple):
    """The machine that the wheels are for: its platform tag, such as manylinux2014_x86_64, and its Python, "3.11"."""

    platform: str
    python: str

    @property
    def machine(self) -> str:
        return "x86_64" if self.platform.endswith("_x86_64") else "aarch64"

    def flags(self) -> list[str]:
        """For `pip download`. pip does not know which tags a newer manylinux includes."""
        newest = re.search(r"_2_(\d+)_", self.platform)
        tags = [f"manylinux_2_{n}_{self.machine}"
                for n in range(int(newest[1]) if newest else OLDEST_MANYLINUX, OLDEST_MANYLINUX - 1, -1)]
        tags.append(f"manylinux2014_{self.machine}")
        return ["--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}",
                *(f"--platform={tag}" for tag in tags)]

    def environment(self) -> dict[str, str]:
        """The values of markers there."""
        here = platform.python_version()
        full = here if here.startswith(self.python + ".") else f"{self.python}.0"
        return {**default_environment(), "python_version": self.python, "python_full_version": full,
                "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": "",
                "platform_machine": self.machine, "implementation_name": "cpython",
                "platform_python_implementation": "CPython"}


def pip(*arguments: str) -> None:
    """Run this interpreter's pip; its output goes to standard error.

    Raises:
        UserError: pip is missing or fails.
    """
    command = [sys.executable, "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"]
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=_STDERR).returncode:
        raise UserError(f"`python -m pip {' '.join(arguments)}` failed, see its messages. Bundling needs pip, and the "
                        "package index or a mirror of it.")


def wheels(folder: Path, target: Target, run_pip: Pip = pip) -> None:
    """Fill the new folder `folder` with wheels from which this package installs on `target` without an index.

    Raises:
        UserError: pip fails, or something has no wheel for that machine.
    """
    folder.mkdir()
    own_wheel(folder, run_pip)
    for name in WITHOUT_WHEELS:
        run_pip("wheel", "--no-deps", f"--wheel-dir={folder}", *_own_requirements(folder, name))
    for _ in range(MOST_ROUNDS):
        missing = unmet(folder, target)
        if not missing:
            return
        # pip evaluates markers for the Python that runs it, so what it leaves out is asked for in the next round.
        run_pip("download", f"--dest={folder}", f"--find-links={folder}", *target.flags(), *missing)
    raise UserError(f"{', '.join(unmet(folder, target))}: no wheels were found for Python {target.python} on "
                    f"{target.platform}. Name another --platform or --python.")


def own_wheel(folder: Path, run_pip: Pip = pip) -> Path:
    """The wheel of this package: built in a checkout, else put together from the installed files."""
    root = Path(jittor_lora.__file__).resolve().parents[2]
    project = root / "pyproject.toml"
    if project.is_file() and f'name = "{NAME}"' in project.read_text(encoding="utf-8"):
        run_pip("wheel", "--no-deps", f"--wheel-dir={folder}", str(root))
    else:
        repack(metadata.distribution(NAME), folder)
    (wheel,) = folder.glob("jittor_lora-*.whl")
    return wheel


def repack(installed: metadata.Distribution, folder: Path) -> Path:
    """The wheel that a pure distribution was installed from, again.

    Raises:
        UserError: its list of files is missing, or files are.
    """
    files = [entry for entry in installed.files or () if ".." not in entry.parts
             and "__pycache__" not in entry.parts and entry.name not in NOT_PACKED]
    gone = [str(entry) for entry in files if not entry.locate().is_file()]
    if gone or not files:
        raise UserError(f"{NAME}: expected the installed files, {', '.join(gone[:5]) or 'and their list'} not found. "
                        f"Install it again: pip install --force-reinstall --no-deps {NAME}.")
    name = f"{canonicalize_name(installed.metadata['Name']).replace('-', '_')}-{installed.version}"
    path, record = folder / f"{name}-py3-none-any.whl", []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in files:
            content = entry.locate().read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{entry.as_posix()},sha256={digest},{len(content)}\n")
            archive.writestr(entry.as_posix(), content)
        archive.writestr(f"{name}.dist-info/RECORD", "".join([*record, f"{name}.dist-info/RECORD,,\n"]))
    return path


def unmet(folder: Path, target: Target) -> list[str]:
    """The requirements of the wheels in `folder` that none of them meets on `target`."""
    versions: dict[str, list] = {}
    for path in folder.glob("*.whl"):
        name, version, _, _ = parse_wheel_filename(path.name)
        versions.setdefault(name, []).append(version)
    environment = target.environment()
    missing = {}
    for requirement in _requirements(sorted(folder.glob("*.whl"))):
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        found = versions.get(canonicalize_name(requirement.name), [])
        if not any(requirement.specifier.contains(version, prereleases=True) for version in found):
            missing[f"{requirement.name}{requirement.specifier}"] = None
    return list(missing)


def _own_requirements(folder: Path, name: str) -> list[str]:
    return [f"{requirement.name}{requirement.specifier}"
            for requirement in _requirements(list(folder.glob("jittor_lora-*.whl"))) if requirement.name == name]


def _requirements(paths: Sequence[Path]) -> Iterator[Requirement]:
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            headers = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
        yield from map(Requirement, headers.get_all("Requires-Dist", []))
