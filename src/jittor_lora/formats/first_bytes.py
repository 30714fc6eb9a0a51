"""Recognises a file's type by its first bytes, whatever its name says."""

from __future__ import annotations

import os

from jittor_lora.files.untrusted import open_input

GGUF = b"GGUF"
_KINDS = {
    GGUF: "a GGUF file. Name the file itself as the base",
    b"version https://git-lfs": "a Git LFS pointer. Run `git lfs pull` in its folder, or fetch the file itself",
    b"<": "a web page. Fetch the file itself",
    b"PK\x03\x04": "a zip or PyTorch file. If it has a model's weights, name it pytorch_model.bin",
    b"\x80": "a pickle. If torch.save wrote it, name it pytorch_model.bin; others are never loaded",
    b"\x1f\x8b": "a gzip file. Unpack it first",
    b"\x89HDF": "an HDF5 file. Save the weights as safetensors",
}


def first_bytes(path: str | os.PathLike) -> bytes:
    with open_input(path) as stream:
        return stream.read(64)


def described(start: bytes) -> str | None:
    """The type of a file that starts with these bytes, and what to do, without a full stop; None if unknown."""
    # A safetensors file starts with its header's length, any byte of which may look like a pickle's.
    if start[8:9] == b"{" and start[7:8] == b"\0":
        return "a safetensors file. Name its folder, which must contain config.json too"
    return next((what for magic, what in _KINDS.items() if start.lstrip(b" \r\n\t").startswith(magic)), None)
