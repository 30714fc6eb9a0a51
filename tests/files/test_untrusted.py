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


@pytest.mark.parametrize("number, kind", [(errno.ENOMEM, MemoryError), (errno.EACCES, UserError),
                                          (errno.EIO, UserError)])
def test_opening(tmp_path, monkeypatch, number, kind):
    (tmp_path / "file").write_bytes(b"{}")

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(kind, match="file"):
        read_input(tmp_path / "file")


@pytest.mark.parametrize("number, kind", [(errno.ENOMEM, MemoryError), (errno.ENODEV, UserError)])
def test_mapping(tmp_path, monkeypatch, number, kind):
    make_folder(tmp_path / "base", GPT2, tiny.tensors(GPT2))

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", fails)
    with pytest.raises(kind, match="model.safetensors"):
        SafetensorsFile(tmp_path / "base" / "model.safetensors")
