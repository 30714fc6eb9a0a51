"""The plain wheel leaves out what few need; the wheel of extras/ has exactly that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def excluded() -> list[str]:
    """The patterns of paths that the plain wheel leaves out."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"/([^"]+)"', re.search(r"^exclude = \[(.*)\]$", text, re.MULTILINE)[1])


def test_the_extras_have_what_the_plain_wheel_leaves_out(excluded):
    text = (ROOT / "extras" / "pyproject.toml").read_text(encoding="utf-8")
    included = dict(re.findall(r'^"\.\./(src/[^"]+)" = "([^"]+)"$', text, re.MULTILINE))
    left_out = {path.relative_to(ROOT).as_posix() for pattern in excluded for path in ROOT.glob(pattern)}
    assert left_out == set(included)
    assert all(source == f"src/{target}" for source, target in included.items())


def plain_install(folder: Path, patterns: list[str]) -> Path:
    """The package as the plain wheel installs it."""
    def left_out(place: str, names: list[str]) -> list[str]:
        paths = {name: (Path(place) / name).relative_to(ROOT).as_posix() for name in names}
        return [name for name, path in paths.items() if any(fnmatch(path, pattern) for pattern in patterns)]

    shutil.copytree(ROOT / "src", folder / "src", ignore=left_out)
    return folder / "src"


@pytest.mark.parametrize(("arguments", "part"), [
    (["bench", "--output", "bench"], "bench"),
    (["inspect", "--data", "e2e-train"], "e2e-train"),
])
def test_what_the_plain_wheel_leaves_out_is_named(excluded, arguments, part, tmp_path):
    source = plain_install(tmp_path, excluded)
    done = subprocess.run([sys.executable, "-m", "jittor_lora", *arguments], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(source)})
    assert done.returncode == 2
    assert f"{part}: not installed" in done.stderr and "pip install ./extras" in done.stderr


def test_the_plain_wheel_shows_its_help(excluded, tmp_path):
    source = plain_install(tmp_path, excluded)
    done = subprocess.run([sys.executable, "-m", "jittor_lora", "--help"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(source)})
    assert done.returncode == 0 and "bench" in done.stdout
