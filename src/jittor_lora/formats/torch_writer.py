"""Writes tensors as `torch.save` does, without torch: see `formats/torch_file.py` for the layout.

The pickle is put together from opcodes (Python's `pickletools` describes them): it names torch's function that makes a
tensor of a storage, which `torch.load(weights_only=True)` accepts.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from typing import IO, Mapping

import numpy as np

_ALIGNMENT = 64  # of the data, in bytes: torch maps it
_FOLDER = "archive"


def write_torch(stream: IO[bytes], wrapper: str | None, tensors: Mapping[str, np.ndarray]) -> None:
    """Write {wrapper: {name: tensor}}, or without a wrapper {name: tensor}, in float32."""
    arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in tensors.items()}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", _program(wrapper, arrays))
        _add(archive, "byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            _add(archive, f"data/{number}", array.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    begin = archive.fp.tell() + 30 + len(info.filename) + 4  # after the local header and the extra field's
    fill = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", fill) + b"Z" * fill  # as torch pads
    archive.writestr(info, content)


def _program(wrapper: str | None, arrays: Mapping[str, np.ndarray]) -> bytes:
    items = b"".join(_text(name) + _tensor(str(number), array) for number, (name, array) in enumerate(arrays.items()))
    inner = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    whole = inner if wrapper is None else pickle.EMPTY_DICT + _text(wrapper) + inner + pickle.SETITEM
    return pickle.PROTO + b"\x02" + whole + pickle.STOP


def _tensor(key: str, array: np.ndarray) -> bytes:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    strides = [stride // array.itemsize for stride in array.strides]
    storage = _tuple(_text("storage"), _name("torch", "FloatStorage"), _text(key), _text("cpu"), _number(array.size))
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = _tuple(storage + pickle.BINPERSID, _number(0), _tuple(*map(_number, array.shape)),
                       _tuple(*map(_number, strides)), pickle.NEWFALSE, hooks)
    return _name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _number(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)
