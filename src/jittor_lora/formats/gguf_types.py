"""The types of tensors that are written to GGUF files: which tensors get which, and their bytes.

As llama.cpp's conversion does, vectors, norms and GPT-2's positions stay float32, and a matrix whose rows do not divide
into blocks becomes float16.
"""

from __future__ import annotations

from typing import Iterator

import numpy as np

from jittor_lora.errors import UserError

# By name, llama.cpp's number of a file whose matrices are of this type, `general.file_type`
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
# The `gguf` library rounds to these as llama.cpp does.
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_ROWS = 512  # encoded at a time
_LARGEST_F16 = 65504.0


def type_of(stored: str, shape: tuple[int, ...], wanted: str) -> str:
    """The type of a tensor, by ggml's name of it.

    Args:
        stored: its name in llama.cpp.
        wanted: the type of matrices.
    """
    if len(shape) < 2 or stored.endswith("_norm.weight") or stored == "position_embd.weight":
        return "F32"
    return wanted if shape[-1] % _sizes(wanted)[0] == 0 else "F16"


def byte_count(shape: tuple[int, ...], kind: str) -> int:
    values, stored = _sizes(kind)
    return int(np.prod(shape, dtype=np.int64)) // values * stored


def encode(name: str, tensor: np.ndarray, kind: str) -> Iterator[bytes]:
    """A float32 tensor in a type, some rows at a time.

    Raises:
        UserError: a number is not finite, or too large for float16.
    """
    from gguf import GGMLQuantizationType, quants  # slow to import

    rows = tensor.reshape(-1, tensor.shape[-1])
    for start in range(0, len(rows), _ROWS):
        part = np.ascontiguousarray(rows[start : start + _ROWS], np.float32)
        largest = np.abs(part).max(initial=0.0)
        if not np.isfinite(largest):
            raise UserError(f"{name}: holds numbers that are not finite.")
        if largest > _LARGEST_F16 and kind == "F16":
            raise UserError(f"{name}: holds {largest:.3g}, and float16 ends at {_LARGEST_F16:,.0f}. Write the file "
                            "with --outtype bf16 or f32.")
        yield quants.quantize(part, GGMLQuantizationType[kind]).tobytes()


def name_of(number: int) -> str:
    """ggml's name of a type."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(number).name


def _sizes(kind: str) -> tuple[int, int]:
    """(values, bytes) of a block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
