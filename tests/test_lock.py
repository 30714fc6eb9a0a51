"""The lock file against the ranges in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
CONTENT = re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE)


def dependencies() -> list[Requirement]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    return [Requirement(line) for line in re.findall(r'^    "(.*)",$', block, re.MULTILINE)]


def entries() -> list[tuple[Requirement, list[str]]]:
    """(name with version and marker, hashes) of each locked package."""
    found = re.findall(r"^(\S.*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", CONTENT, re.MULTILINE)
    return [(Requirement(text), re.findall(r"[0-9a-f]{64}", sums)) for text, sums in found]


def test_every_dependency_is_locked_within_its_range():
    locked = entries()
    for dependency in dependencies():
        own = [entry for entry, _ in locked if canonicalize_name(entry.name) == canonicalize_name(dependency.name)]
        versions = [next(iter(entry.specifier)).version for entry in own]
        assert versions and all(dependency.specifier.contains(version) for version in versions), dependency


def test_every_line_is_a_version_or_a_hash_and_names_no_index():
    lines = [line for line in CONTENT.splitlines() if not line.startswith("    --hash=sha256:")]
    assert len(lines) == len(entries()) > 20
    assert all(re.match(r"[a-z0-9-]+==\S+( ;|( \\)?$)", line) for line in lines)
    assert "://" not in CONTENT and "--index" not in CONTENT and "--find-links" not in CONTENT
