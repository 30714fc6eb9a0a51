"""Errors of the system at reading a file: no memory is told as that, everything else with the file's name."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

import tiny
from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import read_input
from jittor_lora.formats.safetensors_file import SafetensorsFile
from model_files import GPT2, make_folder


@pytest.mark.parametrize("number, words", [(errno.ENOMEM, "file: out of memory"), (errno.EACCES, "Permission denied"),
                                           (errno.EIO, "cannot be read")])
def test_opening(tmp_path, monkeypatch, number, words):
    (tmp_path / "file").write_bytes(b"{}")

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(UserError, match=words):
        read_input(tmp_path / "file")


@pytest.mark.parametrize("number, words", [(errno.ENOMEM, "model.safetensors: out of memory"),
                                           (errno.ENODEV, "model.safetensors: cannot be read")])
def test_mapping(tmp_path, monkeypatch, number, words):
    make_folder(tmp_path / "base", GPT2, tiny.tensors(GPT2))

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", fails)
    with pytest.raises(UserError, match=words):
        SafetensorsFile(tmp_path / "base" / "model.safetensors")
