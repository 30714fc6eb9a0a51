"""Matrices in the number formats of GGUF files: rows of blocks of numbers with common scales, or of 16-bit floats."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, NamedTuple

import numpy as np

FLOAT32 = "F32"
STORED = ("BF16", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_DECODED_ROWS = 512  # at a time, because the gguf library holds its output in memory twice


class Blocks(NamedTuple):
    """A matrix (out, in) as it is stored in a file.

    Attributes:
        kind: ggml's name of the format, one of `STORED`; or `FLOAT32`.
        shape: (out, in); in is a multiple of the numbers per block.
        data: (out, bytes per row) uint8, often a view of a mapped file; the array itself for `FLOAT32`.
    """

    kind: str
    shape: tuple[int, int]
    data: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray | Blocks) -> Blocks:
        """The matrix itself if it is stored in blocks; else, (out, in), as `FLOAT32`."""
        return matrix if isinstance(matrix, Blocks) else cls(FLOAT32, matrix.shape, matrix)

    def decoded(self) -> np.ndarray:
        """(out, in) float32, as ggml defines the format."""
        if self.kind == FLOAT32:
            return np.asarray(self.data, np.float32)
        import gguf.quants  # slow to import

        kind = gguf.GGMLQuantizationType[self.kind]
        values = np.empty(self.shape, np.float32)
        for row in range(0, len(values), _DECODED_ROWS):
            chunk = slice(row, row + _DECODED_ROWS)
            values[chunk] = gguf.quants.dequantize(np.ascontiguousarray(self.data[chunk]), kind)
        return values

    def parts(self, values: int = 1 << 20) -> Iterator[np.ndarray]:
        """The rows in order, decoded some at a time: (n, in) float32 and contiguous, of about this many values."""
        rows = max(1, values // max(1, self.shape[1]))
        for row in range(0, self.shape[0], rows):
            data = self.data[row : row + rows]
            yield np.ascontiguousarray(Blocks(self.kind, (len(data), self.shape[1]), data).decoded())

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """(N, in) float32: these rows decoded."""
        return Blocks(self.kind, (len(ids), self.shape[1]), self.data[ids]).decoded()


def stored_in(tensors: Mapping[str, Any], name: str) -> Blocks | None:
    """The matrix of this name as (out, in), as a checkpoint's tensors have it in their file: what their method `stored`
    returns, if there is one. None for a matrix that is to be kept in float32."""
    return tensors.stored(name) if hasattr(tensors, "stored") else None
