"""A file of tensors that stay in the file until they are used, whatever its format."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping

import numpy as np

from jittor_lora.errors import UserError

if TYPE_CHECKING:
    from jittor_lora.ops.blocks import Blocks

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
# safetensors' names of types and their sizes in bytes
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}
MOST_DIMENSIONS = 32  # numpy's limit


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of one file, as float32.

    F32 tensors are read-only views of the mapped file where they are stored contiguously; others are converted anew on
    each access, so only what the caller keeps stays in memory.

    Attributes:
        entries: name -> what the file says of it, with `dtype` and `shape`; also of tensors that are not floating
            point.
    """

    path: Path
    entries: dict[str, Any]

    @abstractmethod
    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes in C order, (bytes,) uint8, read-only if they are the file's."""

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        if entry.dtype not in FLOAT_TYPES:
            raise UserError(f"{self.path}: {name}: expected one of {', '.join(FLOAT_TYPES)}; found {entry.dtype}.")
        return _to_float32(self.raw(name), entry.dtype).reshape(entry.shape)

    def blocks(self, name: str, transposed: bool = False) -> Blocks | None:
        """A matrix of 16-bit numbers as it is in the file, or its transpose; None for other tensors."""
        from jittor_lora.ops.blocks import Blocks

        entry = self.entries[name]
        if entry.dtype not in ("F16", "BF16") or len(entry.shape) != 2:
            return None
        data = self.raw(name).reshape(entry.shape[0], -1)
        if not transposed:
            return Blocks(entry.dtype, entry.shape, data)
        turned = np.ascontiguousarray(data.view("<u2").T)
        return Blocks(entry.dtype, turned.shape, turned.view(np.uint8))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        wide = raw.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    values = raw.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    if dtype != "F32":
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which callers check
            return values.astype(np.float32)
    # Files from other writers need not align their data, but kernels require it.
    return values if values.flags.aligned else values.copy()
