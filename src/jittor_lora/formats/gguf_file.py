"""GGUF files: metadata and tensors, every count and offset checked against the file before use.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, number of tensors, number of
key-value pairs; the pairs; the tensors' names, dimensions (fastest first), types and offsets; padding; the data.
The blocks of quantised types are decoded by the `gguf` library. Its own reader creates an array per token (2.6 s for a
vocabulary of 49,152, against 0.1 s here) and trusts the counts in the file.
"""

from __future__ import annotations

import mmap
import os
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping, NamedTuple

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import open_input, unreadable
from jittor_lora.formats.first_bytes import GGUF, described

if TYPE_CHECKING:
    from jittor_lora.ops.blocks import Blocks

# Metadata types by number: struct codes; 8 is a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DECODED_ROWS = 512  # at a time
_SMALLEST_PAIR = 8 + 4 + 1  # an empty key, a type, one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # an empty name, no dimensions, a type, an offset


class GgufTensor(NamedTuple):
    """The location of a tensor: bytes [begin, end) of the file, rows of blocks of the ggml type `kind`."""

    kind: int
    shape: tuple[int, ...]  # slowest dimension first, as in numpy
    begin: int
    end: int


class GgufFile(Mapping[str, np.ndarray]):
    """The tensors of one file under llama.cpp's names, decoded to float32 anew on each access.

    Attributes:
        metadata: key -> number, text, bool, list of texts, or array of numbers.
        entries: name -> GgufTensor.

    Raises:
        UserError: the file cannot be opened, is truncated, malformed or of another version, or has tensors of a type
            that cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            with open_input(self.path) as stream:
                if os.fstat(stream.fileno()).st_size == 0:
                    raise UserError(f"{self.path}: expected a GGUF file; found an empty file.")
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise unreadable(self.path, error) from error
        try:
            self.metadata, self.entries = _read_header(self._bytes)
        except _Malformed as error:
            start = self._bytes[:64]
            what = None if start.startswith(GGUF) else described(start)
            advice = f"It is {what}" if what else "The download may be incomplete: fetch the file again"
            raise UserError(f"{self.path}: not a usable GGUF file: {error}. {advice}.") from error

    def __getitem__(self, name: str) -> np.ndarray:
        import gguf.quants  # slow to import, and unused by other commands

        entry = self.entries[name]
        kind = gguf.GGMLQuantizationType(entry.kind)
        rows = prod(entry.shape[:-1])
        blocks = self.raw(name).reshape(rows, -1)  # (rows, bytes of a row)
        if kind == gguf.GGMLQuantizationType.F32:
            tensor = blocks.view("<f4").reshape(entry.shape)
            return tensor if tensor.flags.aligned else tensor.copy()
        # A few rows at a time, because the library holds its output in memory twice.
        values = np.empty((rows, entry.shape[-1]), np.float32)
        for row in range(0, rows, _DECODED_ROWS):
            chunk = slice(row, row + _DECODED_ROWS)
            values[chunk] = gguf.quants.dequantize(blocks[chunk], kind)
        return values.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def blocks(self, name: str) -> Blocks | None:
        """A matrix as it is in the file, a view of it; None if it is of a kind that is not computed with as it is."""
        import gguf

        from jittor_lora.ops.blocks import STORED, Blocks

        entry = self.entries[name]
        kind = gguf.GGMLQuantizationType(entry.kind).name
        if kind not in STORED or len(entry.shape) != 2:
            return None
        return Blocks(kind, entry.shape, self.raw(name).reshape(entry.shape[0], -1))

    def metadata_types(self) -> dict[str, tuple[int, int | None]]:
        """Key -> GGUF's number of its type, and for an array of that of its items."""
        cursor = _Cursor(self._bytes)
        cursor.take(4 + 4 + 8)
        types: dict[str, tuple[int, int | None]] = {}
        for _ in range(cursor.number("Q")):
            key, kind, start = cursor.text(), cursor.number("I"), cursor.position
            types[key] = kind, cursor.number("I") if kind == _ARRAY else None
            cursor.position = start
            cursor.value(kind)
        return types

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes in the file, (bytes,) uint8, read-only."""
        entry = self.entries[name]
        return np.frombuffer(self._bytes, np.uint8, entry.end - entry.begin, entry.begin)


class _Malformed(Exception):
    pass


class _Cursor:
    """Reads forward through the file; a read past the end raises."""

    def __init__(self, data: mmap.mmap):
        self.data, self.position, self.size = data, 0, len(data)

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > self.size:
            raise _Malformed(f"truncated: expected {end} bytes or more; found {self.size}")
        self.position = end
        return self.data[end - count : end]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, smallest: int) -> int:
        """A 64-bit count of items that take at least `smallest` bytes each."""
        count = self.number("Q")
        if count * smallest > self.size - self.position:
            raise _Malformed(f"truncated, or a count of {count} that the file of {self.size} bytes cannot hold")
        return count

    def text(self) -> str:
        try:
            return self.take(self.count(1)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Malformed(f"text that is not UTF-8 at byte {self.position}") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _Malformed(f"unknown metadata type {kind} at byte {self.position}")
        item = self.number("I")
        if item == _STRING:
            return [self.text() for _ in range(self.count(8))]
        if item not in _SCALARS:  # arrays of arrays occur in no known model
            raise _Malformed(f"unknown array type {item} at byte {self.position}")
        kind_of_item = np.dtype("<" + _SCALARS[item])
        return np.frombuffer(self.take(self.count(kind_of_item.itemsize) * kind_of_item.itemsize), kind_of_item)


def _read_header(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    cursor = _Cursor(data)
    if cursor.take(4) != GGUF:
        raise _Malformed("it does not start with GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        order = " (big-endian)" if version & 0xFFFF == 0 else ""
        raise _Malformed(f"expected version 2 or 3; found {version}{order}")
    tensor_count, pair_count = cursor.count(_SMALLEST_TENSOR), cursor.count(_SMALLEST_PAIR)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text()
        if key in metadata:
            raise _Malformed(f"metadata key {key[:60]} occurs twice")
        metadata[key] = cursor.value(cursor.number("I"))
    tensors = [_read_tensor(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise _Malformed(f"general.alignment: expected a positive number; found {str(alignment)[:60]}")
    start = -(-cursor.position // alignment) * alignment
    return metadata, _place(tensors, start, cursor.size)


def _read_tensor(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    name = cursor.text()
    dimensions = cursor.number("I")
    if dimensions > 4:
        raise _Malformed(f"tensor {name[:60]}: expected 4 dimensions at most; found {dimensions}")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    return name, cursor.number("I"), shape, cursor.number("Q")


def _place(tensors: list[tuple[str, int, tuple[int, ...], int]], start: int, size: int) -> dict[str, GgufTensor]:
    """The location of each tensor, checked to lie within the file and not to overlap another."""
    block_sizes = _block_sizes({kind for _, kind, _, _ in tensors})
    entries: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in tensors:
        if kind not in block_sizes:
            raise _Malformed(f"tensor {name[:60]}: its type (number {kind}) cannot be decoded by the gguf library")
        values, stored = block_sizes[kind]
        row = shape[-1] if shape else 1
        if row % values:
            raise _Malformed(f"tensor {name[:60]}: rows of {row} values do not divide into blocks of {values}")
        begin, end = start + offset, start + offset + prod(shape) // values * stored
        if end > size:
            raise _Malformed(f"truncated: tensor {name[:60]} ends at byte {end} of {size}")
        if name in entries:
            raise _Malformed(f"tensor {name[:60]} occurs twice")
        entries[name] = GgufTensor(kind, shape, begin, end)
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin < position:
            raise _Malformed(f"tensor {name[:60]} overlaps another")
        position = entry.end
    return entries


def _block_sizes(kinds: set[int]) -> dict[int, tuple[int, int]]:
    """(values, bytes) per block of each of these types that the gguf library can decode."""
    import gguf.quants

    sizes = {}
    for kind in kinds & {known.value for known in gguf.GGMLQuantizationType}:
        known = gguf.GGMLQuantizationType(kind)
        values, stored = gguf.GGML_QUANT_SIZES[known]
        try:
            gguf.quants.dequantize(np.zeros((1, stored), np.uint8), known)
        except NotImplementedError:
            continue
        sizes[kind] = values, stored
    return sizes
