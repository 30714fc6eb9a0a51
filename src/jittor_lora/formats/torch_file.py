"""Files of `torch.save` (`pytorch_model.bin`, `.pt`), read without torch and without running anything in them.

Since PyTorch 1.6 such a file is a zip archive: in `<name>/data.pkl`, a pickle, tensors refer to storages by key, and
`<name>/data/<key>` has the bytes of a storage, uncompressed, so that they are mapped, not read. Before, it was five
pickles in a row (a magic number, a version, properties of the machine, the object, the storages' keys) and then, for
each key, the number of elements in eight bytes, and the elements. The pickles are read by `torch_pickle`.
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.untrusted import open_input, unreadable
from jittor_lora.formats import torch_pickle
from jittor_lora.formats.first_bytes import described
from jittor_lora.formats.tensor_file import ITEM_SIZES, TensorFile
from jittor_lora.formats.torch_pickle import PickleError, Storage, Tensor
from jittor_lora.formats.zip_members import ZipError, zip_members

# Dictionaries around a state dict, in which training programs save it
WRAPPERS = ("state_dict", "model_state_dict", "model")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before 1.6
_LARGEST_NOTE = 64  # bytes, of the member `byteorder`
_MOST_TIMES = 4  # that the tensors together may exceed the file: a tied head shares the embedding's storage
_LONGEST_NAME = 1024  # characters
_PICKLED = "data.pkl"
_SHOWN = 80  # characters


class TorchEntry(NamedTuple):
    """A tensor: its first element is at byte `begin`; `strides` count bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    strides: tuple[int, ...]


class TorchFile(TensorFile):
    """The tensors of one file. A state dict within a dictionary (`WRAPPERS`) is taken out of it.

    Attributes:
        entries: name -> TorchEntry.

    Raises:
        UserError: the file cannot be opened, is damaged, or holds anything but tensors by name.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with open_input(self.path) as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise UserError(f"{self.path}: expected PyTorch weights; found an empty file.")
            try:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise unreadable(self.path, error) from error
        try:
            value, places = self._contents()
            tensors = _state_dict(value)
        except (PickleError, ZipError) as error:
            raise UserError(f"{self.path}: expected PyTorch weights; found {error}.") from error
        wrong = [f"{repr(name)[:_SHOWN]}: {problem}" for name, tensor in tensors.items()
                 for problem in [_problem(name, tensor)] if problem]
        if wrong:
            raise UserError("\n  ".join([f"{self.path}:", *some_of_each(wrong)]))
        self.entries = {name: _entry(tensor, *places[tensor.storage.key]) for name, tensor in tensors.items()}
        total = sum(ITEM_SIZES[entry.dtype] * math.prod(entry.shape) for entry in self.entries.values())
        if total > _MOST_TIMES * len(self._bytes):
            raise UserError(f"{self.path}: its {len(self._bytes):,} bytes hold tensors of {total:,}, which no weights "
                            "do.")

    def raw(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        size = ITEM_SIZES[entry.dtype]
        if math.prod(entry.shape) == 0:
            return np.zeros(0, np.uint8)
        if entry.strides == _contiguous(entry.shape, size):
            return np.frombuffer(self._bytes, np.uint8, size * math.prod(entry.shape), entry.begin)
        view = np.ndarray(entry.shape, f"u{size}", self._bytes, entry.begin, entry.strides)
        return np.ascontiguousarray(view).reshape(-1).view(np.uint8)

    def _contents(self) -> tuple[Any, dict[str, tuple[int, int]]]:
        """What was saved, and the places of the storages."""
        start = self._bytes[:64]
        if start.startswith(_ZIP):
            return _from_zip(self._bytes)
        if start.startswith(_PICKLE):
            return _from_pickles(self._bytes)
        raise PickleError(described(start) or "something else")


def _from_zip(data: mmap.mmap) -> tuple[Any, dict[str, tuple[int, int]]]:
    members = zip_members(data)
    found = [name for name in members if name.count("/") == 1 and name.endswith(f"/{_PICKLED}")]
    if len(found) != 1:
        raise ZipError(f"a zip archive without one member {_PICKLED}")
    folder, pickled = found[0][: -len(_PICKLED)], members[found[0]]
    order = members.get(f"{folder}byteorder")
    if order is not None and data[order.begin : min(order.end, order.begin + _LARGEST_NOTE)] != b"little":
        raise ZipError("numbers in another byte order than little-endian")
    if pickled.end - pickled.begin > torch_pickle.LARGEST:
        raise ZipError(f"a pickle of {pickled.end - pickled.begin:,} bytes; expected at most {torch_pickle.LARGEST:,}")
    program = data[pickled.begin : pickled.end]
    if zlib.crc32(program) != pickled.crc:
        raise ZipError(f"a damaged {_PICKLED}, whose checksum is another one")
    loaded, places = torch_pickle.load(program), {}
    for key, storage in loaded.storages.items():
        member = members.get(f"{folder}data/{key}")
        if member is None:
            raise ZipError(f"no data of the storage {key[:20]!r}")
        places[key] = member.begin, member.end
        _check_size(storage, member.end - member.begin)
    return loaded.value, places


def _from_pickles(data: mmap.mmap) -> tuple[Any, dict[str, tuple[int, int]]]:
    header, at = [], 0
    for _ in range(3):
        value, _, at = torch_pickle.load(data, at)
        header.append(value)
        if header[0] != _MAGIC:
            raise PickleError("a pickle that torch.save did not write")
    if header[1] != _PROTOCOL or type(header[2]) is not dict or header[2].get("little_endian") is not True:
        raise PickleError("another version of PyTorch's format, or numbers that are not little-endian")
    loaded = torch_pickle.load(data, at)
    keys, _, at = torch_pickle.load(data, loaded.end)
    if type(keys) is not list or not all(type(key) is str for key in keys) or (
            len(keys) != len(loaded.storages) or set(keys) != set(loaded.storages)):
        raise PickleError("a list of storages that are not those of the tensors")
    places = {}
    for key in keys:
        storage = loaded.storages[key]
        begin, size = at + 8, storage.count * ITEM_SIZES[storage.dtype]
        if int.from_bytes(data[at:begin], "little") != storage.count:
            raise PickleError(f"another size at the data of the storage {key[:20]!r}")
        _check_size(storage, min(size, len(data) - begin))
        places[key] = begin, begin + size
        at = begin + size
    return loaded.value, places


def _check_size(storage: Storage, found: int) -> None:
    size = storage.count * ITEM_SIZES[storage.dtype]
    if found != size:
        raise PickleError(f"{found:,} bytes of the storage {storage.key[:20]!r}; expected {size:,}. The download may "
                          "be incomplete: fetch the file again")


def _state_dict(value: Any) -> dict[str, Tensor]:
    """The dictionary of tensors: the value itself, or the one in it that has a usual name."""
    if type(value) is dict and not any(type(item) is Tensor for item in value.values()):
        inner = [value[name] for name in WRAPPERS if type(value.get(name)) is dict]
        if len(inner) == 1:
            value = inner[0]
    if type(value) is not dict or not value:
        raise PickleError("something other than a dictionary of tensors")
    return value


def _problem(name: Any, tensor: Any) -> str | None:
    if type(name) is not str or len(name) > _LONGEST_NAME:
        return f"expected a name of at most {_LONGEST_NAME} characters"
    if type(tensor) is not Tensor:
        return f"expected a tensor, found {type(tensor).__name__}"
    shape, count = tensor.shape, math.prod(tensor.shape)
    if count == 0:
        return None
    last = tensor.offset + sum((length - 1) * stride for length, stride in zip(shape, tensor.strides))
    if last >= tensor.storage.count:
        return (f"of shape {shape} with strides {tensor.strides} and offset {tensor.offset} ends after its "
                f"storage of {tensor.storage.count:,} elements")
    return "its elements overlap in the file" if _overlaps(tensor) else None


def _overlaps(tensor: Tensor) -> bool:
    """Could two elements be the same one in the storage? Sorted by stride, each has to step over all before it."""
    reach = 0
    for stride, length in sorted(zip(tensor.strides, tensor.shape)):
        if length > 1:
            if stride <= reach:
                return True
            reach += (length - 1) * stride
    return False


def _entry(tensor: Tensor, begin: int, end: int) -> TorchEntry:
    size, shape = ITEM_SIZES[tensor.storage.dtype], tensor.shape
    contiguous = _contiguous(shape, size)
    # The stride of a dimension of one element, or of no elements at all, means nothing.
    strides = tuple(usual if length == 1 else size * stride
                    for usual, stride, length in zip(contiguous, tensor.strides, shape))
    return TorchEntry(tensor.storage.dtype, shape, begin + size * tensor.offset, strides)


def _contiguous(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Strides in bytes of an array in C order."""
    return tuple(size * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
