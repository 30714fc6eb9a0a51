"""The lock files against the ranges in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = ("lock.txt", "lock-serve.txt")


def content(name: str) -> str:
    """A lock file without its comments."""
    return re.sub(r"^#.*\n", "", (ROOT / "requirements" / name).read_text(encoding="utf-8"), flags=re.MULTILINE)


def dependencies(name: str) -> list[Requirement]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    extra = re.search(r"^serve = \[(.*)\]$", text, re.MULTILINE)[1] if name == "lock-serve.txt" else ""
    return [Requirement(found) for found in re.findall(r'"([^"]+)"', block + extra)]


def entries(name: str) -> list[tuple[Requirement, list[str]]]:
    """(name with version and marker, hashes) of each locked package."""
    found = re.findall(r"^(\S.*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", content(name), re.MULTILINE)
    return [(Requirement(text), re.findall(r"[0-9a-f]{64}", sums)) for text, sums in found]


@pytest.mark.parametrize("name", FILES)
def test_every_dependency_is_locked_within_its_range(name):
    locked = entries(name)
    for dependency in dependencies(name):
        own = [entry for entry, _ in locked if canonicalize_name(entry.name) == canonicalize_name(dependency.name)]
        versions = [next(iter(entry.specifier)).version for entry in own]
        assert versions and all(dependency.specifier.contains(version) for version in versions), dependency


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_version_or_a_hash_and_names_no_index(name):
    text = content(name)
    lines = [line for line in text.splitlines() if not line.startswith("    --hash=sha256:")]
    assert len(lines) == len(entries(name)) > 20
    assert all(re.match(r"[a-z0-9-]+==\S+( ;|( \\)?$)", line) for line in lines)
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_the_server_is_locked_to_the_same_versions():
    plain, serve = ({(entry.name, str(entry.specifier)) for entry, _ in entries(name)} for name in FILES)
    assert plain < serve
