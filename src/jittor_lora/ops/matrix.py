"""A frozen weight matrix in the form that products take."""

from __future__ import annotations

import mmap
from typing import Callable

import numpy as np

from jittor_lora.ops.cpu import decode, packing
from jittor_lora.system.runtime import jt

PRECISIONS = ("fp32", "bf16")


class Matrix:
    """A frozen (out, in) matrix: in float32, or rounded to bfloat16 and laid out for the processor's own products.

    A bf16 matrix holds no float32 copy; what needs one (a merge, the portable operations) reads it again.

    Args:
        read: gives the array, (out, in). It is kept, so it should hold little itself: a view of a mapped file.
        precision: "fp32" or "bf16".
    """

    def __init__(self, read: Callable[[], np.ndarray], precision: str = "fp32"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision}")
        self._read, self.precision = read, precision
        self._forms: dict[str, jt.Var | None] = {}
        self._table: np.ndarray | None = None
        array = read()
        self.shape = array.shape
        if precision == "fp32":
            self._forms["float32"] = frozen(array)
        _release(array)

    @classmethod
    def of(cls, array: np.ndarray, precision: str = "fp32") -> Matrix:
        return cls(lambda: array, precision)

    @property
    def var(self):
        """(out, in) float32; made anew each time from a bf16 matrix, with the numbers it had before rounding."""
        return self._forms["float32"] if self.precision == "fp32" else frozen(self._read())

    def numpy(self) -> np.ndarray:
        """(out, in) float32."""
        return self._forms["float32"].numpy() if self.precision == "fp32" else np.asarray(self._read(), np.float32)

    def rows(self, ids: np.ndarray):
        """(N, in) float32: rows of the matrix, not rounded. Ids must have been checked."""
        if self.precision == "fp32" and jt.flags.use_cuda:
            return self.var[jt.array(ids)].stop_grad()
        return frozen(self.table[ids])

    @property
    def table(self) -> np.ndarray:
        """(out, in) float32 in the processor's memory, not rounded; kept."""
        if self._table is None:
            self._table = self.var.data if self.precision == "fp32" else self._read()
        return self._table

    def packed(self, transposed: bool):
        """A bf16 matrix for x · Wᵀ (`transposed`) or for dy · W, as bytes; kept."""
        return self._form(f"packed {transposed}", lambda w: packing.pack(w, transposed))

    def packed_head(self, down: bool):
        """A bf16 matrix in panels of its rows, for logits or, `down`, for their gradient; kept."""
        return self._form(f"head {down}", lambda w: packing.pack_head(w, down))

    def panels(self):
        """The matrix in panels for decoding, in its own precision, as bytes; kept."""
        return self._form("panels", lambda w: decode.pack(w, self.precision == "bf16"))

    def screen(self):
        """The matrix as bytes that find its largest product with a state, None where that is not faster; kept."""
        return self._form("screen", lambda w: decode.pack_screen(w, self.precision == "bf16"))

    def squares(self, axis: int):
        """Sums of the squares, not rounded, along an axis: (out,) for 1, (in,) for 0; kept."""
        return self._form(f"squares {axis}", lambda w: jt.array(np.square(w, dtype=np.float64).sum(axis)).float32())

    trained = False

    def _form(self, name: str, make: Callable[[np.ndarray], jt.Var]):
        if name not in self._forms:
            array = self._read()
            made = make(np.ascontiguousarray(array, np.float32))
            self._forms[name] = None if made is None else made.stop_grad()
            _release(array)
        return self._forms[name]


class TrainedMatrix(jt.Module):
    """A matrix (out, in) that takes a gradient: what `Matrix` offers, of an array that changes.

    Args:
        var: the array, float32; products with it are in float32.
        precision: in which it is laid out for decoding.
    """

    trained = True

    def __init__(self, var: jt.Var, precision: str = "fp32"):
        super().__init__()
        self.var, self.precision = var, precision

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.var.shape)

    def numpy(self) -> np.ndarray:
        return self.var.numpy()

    def rows(self, ids: np.ndarray):
        """(N, in): rows of the matrix. Ids must have been checked."""
        return self.var[jt.array(ids)]

    @property
    def table(self) -> np.ndarray:
        return self.numpy()

    def panels(self):
        """See `Matrix.panels`; made anew each time."""
        return decode.pack(self.numpy(), self.precision == "bf16")

    def screen(self):
        """See `Matrix.screen`; made anew each time."""
        return decode.pack_screen(self.numpy(), self.precision == "bf16")


def frozen(array: np.ndarray):
    """A float32 Jittor array that gets no gradient."""
    return as_var(np.ascontiguousarray(array, dtype=np.float32)).stop_grad()


def as_var(array: np.ndarray):
    """The same as a Jittor array. One of shape (1,) would be taken for a constant, and compiled as an operator."""
    return jt.array(array[None]).reshape((1,)) if array.shape == (1,) else jt.array(array)


def _release(array: np.ndarray) -> None:
    """Give back the memory of a mapped file that reading `array` filled; what is read again comes from the file."""
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
