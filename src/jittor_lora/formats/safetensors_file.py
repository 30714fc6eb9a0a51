"""Safetensors files: the header is checked before use, the tensors are mapped, not read.

Layout (https://github.com/huggingface/safetensors#format): the header's length in eight bytes, little-endian; the
header, JSON: name -> dtype, shape, [begin, end) in the data; the data.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path
from typing import IO, Any, Mapping, NamedTuple

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.finite import all_finite, kinds
from jittor_lora.files.untrusted import load_json, open_input, unique_keys, unreadable
from jittor_lora.formats.first_bytes import described
from jittor_lora.formats.tensor_file import ITEM_SIZES, MOST_DIMENSIONS, TensorFile

# The reference implementation accepts 100 MB, whose Python objects would fill gigabytes; a tensor needs 150 bytes.
_LONGEST_HEADER = 32 << 20
_SHOWN_CHARACTERS = 80
_SHOWN_OFFENDERS = 20


class Entry(NamedTuple):
    """The location of a tensor: bytes [begin, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(TensorFile):
    """The tensors of one safetensors file.

    Attributes:
        entries: name -> Entry, including tensors that are not floating point.
        metadata: the header's `__metadata__`, text to text.

    Raises:
        UserError: the file cannot be opened, or is truncated or malformed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            with open_input(self.path) as stream:
                size = os.fstat(stream.fileno()).st_size
                self.entries, self.metadata = _read_header(self.path, stream, size)
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes in the file, (bytes,) uint8, read-only."""
        entry = self.entries[name]
        return np.frombuffer(self._bytes, np.uint8, entry.end - entry.begin, entry.begin)


def write_safetensors(stream: IO[bytes], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]],
                      metadata: Mapping[str, str], path: Path) -> None:
    """Write `tensors` as float32 in the order of `shapes`, reading one at a time.

    Args:
        path: the final name of the file, which it must not get if this raises (see `files.atomic_write`).

    Raises:
        ValueError: a tensor's shape differs from `shapes`.
        UserError: tensors are not finite; all are listed.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data starts at a multiple of eight
    stream.write(len(encoded).to_bytes(8, "little") + encoded)
    wrong = []
    for name, shape in shapes.items():
        tensor = np.asarray(tensors[name], "<f4", order="C")
        if tensor.shape != tuple(shape):
            raise ValueError(f"{name}: expected shape {tuple(shape)}; found {tensor.shape}")
        if not all_finite(tensor):
            wrong.append(f"{name}: {kinds(tensor)}")
        stream.write(memoryview(tensor.reshape(-1)).cast("B") if tensor.size else b"")
    if wrong:
        more = len(wrong) - _SHOWN_OFFENDERS
        shown = wrong[:_SHOWN_OFFENDERS] + ([f"… and {more} more"] if more > 0 else [])
        raise UserError("\n  ".join([f"{path}: not written, because of numbers that are not finite:", *shown])
                        + "\nAn existing file is unchanged. In training, lower the learning_rate or clip the gradient; "
                        "elsewhere, check whether the inputs are damaged.")


def _read_header(path: Path, stream: IO[bytes], size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    again = "The download may be incomplete: fetch the file again."
    if size < 8:
        raise UserError(f"{path}: expected a safetensors file; found only {size} bytes. {again}")
    length = int.from_bytes(stream.read(8), "little")
    if length > _LONGEST_HEADER:
        stream.seek(0)
        what = described(stream.read(64))
        if what:
            raise UserError(f"{path}: expected a safetensors file; found {what}.")
        raise UserError(f"{path}: not a safetensors file (its first bytes announce a header of {length} bytes).")
    if 8 + length > size:
        raise UserError(f"{path}: truncated: expected a header of {length} bytes; found {size - 8}. {again}")
    try:
        header = load_json(stream.read(length).decode("utf-8"), object_pairs_hook=unique_keys())
    except ValueError as error:
        raise UserError(f"{path}: not a safetensors file (its header is not JSON: {error}).") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is not a JSON object).")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # null in MLX's files
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: header: __metadata__: expected text by name; found "
                        f"{str(metadata)[:_SHOWN_CHARACTERS]}.")

    start = 8 + length
    entries = {name: _read_entry(path, name, value, start) for name, value in header.items()}
    last = max((entry.end for entry in entries.values()), default=start)
    if last > size:
        raise UserError(f"{path}: truncated: expected {last} bytes; found {size}. {again}")
    position, previous = start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < position:
            raise UserError(f"{path}: malformed: the data of {name} overlaps that of {previous}.")
        position, previous = entry.end, name
    return entries, metadata


def _read_entry(path: Path, name: str, value: Any, start: int) -> Entry:
    def whole(numbers: Any) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)

    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and whole(shape) and whole(offsets) and len(offsets) == 2):
        raise UserError(f"{path}: header: {name}: expected dtype, shape and data_offsets; found "
                        f"{str(value)[:_SHOWN_CHARACTERS]}.")
    if len(shape) > MOST_DIMENSIONS:
        raise UserError(f"{path}: header: {name}: expected at most {MOST_DIMENSIONS} dimensions; "
                        f"found {len(shape):,}.")
    if dtype not in ITEM_SIZES:
        raise UserError(f"{path}: header: {name}: expected a known dtype; found {dtype[:40]}.")
    begin, end = offsets
    size = ITEM_SIZES[dtype] * math.prod(shape)
    if end - begin != size:
        raise UserError(f"{path}: header: {name}: expected {size} bytes for {dtype} of shape {tuple(shape)}; "
                        f"found {end - begin}.")
    return Entry(dtype, tuple(shape), start + begin, start + end)
