"""The public names of the package: all exist, and none is imported before it is used."""

import subprocess
import sys

import pytest

import jittor_lora


def test_every_public_name_exists():
    for name in jittor_lora.__all__:
        assert getattr(jittor_lora, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        jittor_lora.no_such_name  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, jittor_lora; print([m for m in ('numpy', 'jittor', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
