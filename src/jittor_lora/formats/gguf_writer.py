"""Writing GGUF files: the header by the `gguf` library, then one tensor after the other, made when it is written."""

from __future__ import annotations

from typing import IO, Any, Callable, Iterable, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np

from jittor_lora.formats.gguf_types import byte_count

_LARGEST_UINT32 = (1 << 32) - 1


class Typed(NamedTuple):
    """A value with GGUF's numbers of its type and, of an array, of the type of its items."""

    value: Any
    kind: int
    item: Optional[int] = None


class TensorPlan(NamedTuple):
    """A tensor to be written.

    Attributes:
        name: llama.cpp's.
        shape: slowest dimension first.
        kind: ggml's name of its type.
        parts: its bytes, in order, made when it is written.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    parts: Callable[[], Iterable[bytes]]


Value = Union[str, bool, int, float, Sequence, np.ndarray, Typed]


def write_gguf(stream: IO[bytes], architecture: str, metadata: Mapping[str, Value],
               tensors: Sequence[TensorPlan]) -> None:
    """Write a whole file to an open stream.

    Args:
        architecture: `general.architecture`.
        metadata: the other keys. A whole number becomes a uint32, a decimal one a float32, a list of whole numbers one
            of int32; empty lists, which the library does not write, are left out.

    Raises:
        UserError: a tensor cannot be written in its type.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.gguf_writer import WriterState

    writer = GGUFWriter(None, architecture)
    for key, value in metadata.items():
        typed = value if isinstance(value, Typed) else _typed(value)
        found = typed.value.tolist() if isinstance(typed.value, np.ndarray) else typed.value
        if typed.item is None or len(found):
            writer.add_key_value(key, found, _kind(typed.kind), None if typed.item is None else _kind(typed.item))
    for plan in tensors:
        writer.add_tensor_info(plan.name, plan.shape, np.dtype(np.float32), byte_count(plan.shape, plan.kind),
                               GGMLQuantizationType[plan.kind])
    # The library would open the file by its name; it must be the temporary one that is renamed when it is complete.
    writer.fout, writer.state = [stream], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(stream, stream.tell())
    for plan in tensors:
        size = 0
        for part in plan.parts():
            stream.write(part)
            size += len(part)
        if size != byte_count(plan.shape, plan.kind):
            raise ValueError(f"{plan.name}: {size} bytes of {byte_count(plan.shape, plan.kind)}")
        writer.write_padding(stream, size)


def _kind(number: int):
    from gguf import GGUFValueType

    return GGUFValueType(number)


def _typed(value: Any) -> Typed:
    from gguf import GGUFValueType as Kind

    if isinstance(value, (list, tuple)):
        item = Kind.STRING if all(isinstance(part, str) for part in value) else Kind.INT32
        return Typed(value, Kind.ARRAY, item)
    for type_, kind in ((str, Kind.STRING), (bool, Kind.BOOL), (int, Kind.UINT32), (float, Kind.FLOAT32)):
        if isinstance(value, type_):
            if kind is Kind.UINT32 and not 0 <= value <= _LARGEST_UINT32:
                raise ValueError(f"{value} is no uint32")
            return Typed(value, kind)
    raise TypeError(f"{type(value).__name__} in metadata")
