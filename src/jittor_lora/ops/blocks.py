"""Matrices in the number formats of GGUF files: rows of blocks of numbers with common scales, or of 16-bit floats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

STORED = ("BF16", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_DECODED_ROWS = 512  # at a time, because the gguf library holds its output in memory twice


class Blocks(NamedTuple):
    """A matrix (out, in) as it is stored in a file.

    Attributes:
        kind: ggml's name of the format, one of `STORED`.
        shape: (out, in); in is a multiple of the numbers per block.
        data: (out, bytes per row) uint8, often a view of a mapped file.
    """

    kind: str
    shape: tuple[int, int]
    data: np.ndarray

    def decoded(self) -> np.ndarray:
        """(out, in) float32, as ggml defines the format."""
        import gguf.quants  # slow to import

        kind = gguf.GGMLQuantizationType[self.kind]
        values = np.empty(self.shape, np.float32)
        for row in range(0, len(values), _DECODED_ROWS):
            chunk = slice(row, row + _DECODED_ROWS)
            values[chunk] = gguf.quants.dequantize(np.ascontiguousarray(self.data[chunk]), kind)
        return values

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """(N, in) float32: these rows decoded."""
        return Blocks(self.kind, (len(ids), self.shape[1]), self.data[ids]).decoded()
