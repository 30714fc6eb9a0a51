"""Files as `torch.save` writes them, and hostile ones, made without torch: pickles opcode by opcode."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Mapping

import numpy as np

MARK, STOP, NONE, FALSE = b"(", b".", b"N", b"\x89"
STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<f8": "DoubleStorage", "<i8": "LongStorage"}
MAGIC = 0x1950A86A20F9469CFC6C


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def numbers(values) -> bytes:
    return MARK + b"".join(map(number, values)) + b"t"


def ordered() -> bytes:
    return name("collections", "OrderedDict") + b")R"


def storage(key: str, count: int, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    return MARK + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count) + view + b"tQ"


def tensor(held: bytes, shape, strides, offset: int = 0, how: str = "_rebuild_tensor_v2") -> bytes:
    return (name("torch._utils", how) + MARK + held + number(offset) + numbers(shape) + numbers(strides) + FALSE
            + ordered() + b"tR")


def whole(array: np.ndarray, key: str, view: bytes = b"") -> bytes:
    """A tensor that is all of a storage."""
    strides = [stride // array.itemsize for stride in np.ascontiguousarray(array).strides]
    return tensor(storage(key, array.size, STORAGES[array.dtype.str], view), array.shape, strides)


def state_dict(arrays: Mapping[str, np.ndarray], view: bytes = b"") -> bytes:
    items = b"".join(text(key) + whole(array, str(i), view) for i, (key, array) in enumerate(arrays.items()))
    return ordered() + MARK + items + b"u" + b"}" + MARK + text("_metadata") + ordered() + b"ub"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + STOP


def archive(pickled: bytes, data: Mapping[str, bytes], method: int = zipfile.ZIP_STORED, order: bytes = b"little",
            folder: str = "archive") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as writer:
        writer.writestr(f"{folder}/data.pkl", pickled)
        writer.writestr(f"{folder}/byteorder", order)
        for key, content in data.items():
            writer.writestr(f"{folder}/data/{key}", content)
        writer.writestr(f"{folder}/version", "3\n")
    return made.getvalue()


def saved(arrays: Mapping[str, np.ndarray], **options) -> bytes:
    """`torch.save(state_dict, …)` since PyTorch 1.6."""
    data = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    return archive(program(state_dict(arrays)), data, **options)


def saved_before_1_6(arrays: Mapping[str, np.ndarray]) -> bytes:
    keys = b"]" + MARK + b"".join(text(str(i)) for i in range(len(arrays))) + b"e"
    machine = b"}" + text("little_endian") + b"\x88s"
    parts = [number(MAGIC), number(1001), machine, state_dict(arrays, NONE), keys]
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    return b"".join(map(program, parts)) + data
