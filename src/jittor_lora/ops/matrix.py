"""Weight matrices, frozen or trained, with the forms of them that backends compute with."""

from __future__ import annotations

from typing import Callable, Hashable

import numpy as np

from jittor_lora.files.mapped import release
from jittor_lora.ops.blocks import FLOAT32, Blocks
from jittor_lora.ops.precision import PRECISIONS
from jittor_lora.system.runtime import jt

Pack = Callable[[np.ndarray], "jt.Var | None"]  # the array, float32 and contiguous → a form of it


class Matrix:
    """A frozen (out, in) matrix, in the number format of the file that it is read from.

    Float32 in fp32 or tf32 is held as an array. Of all else only the forms are held that backends pack (see `form` and
    `stored_form`); what needs float32 (a merge, the portable operations) reads, and decodes, the matrix again. On CUDA
    the array is held from its first use: decoding there means sending it, for each product anew.

    Args:
        read: returns the matrix, (out, in), as an array or as `Blocks`. It is kept, so it should hold little memory
            itself: a view of a mapped file.
        precision: of products with it, one of `PRECISIONS`.

    Attributes:
        storage: the format it is held in: "F32", or the kind of its blocks.
    """

    trained = False

    def __init__(self, read: Callable[[], np.ndarray | Blocks], precision: str = "fp32"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision}")
        self._read, self.precision = read, precision
        self._forms: dict[Hashable, jt.Var | None] = {}
        self._table: Blocks | None = None
        contents = self._contents()
        self.storage, self.shape = contents.kind, tuple(contents.shape)
        self._var = on_device(np.asarray(contents.data, np.float32)) if self._is_array else None
        release(contents.data)

    @classmethod
    def of(cls, array: np.ndarray, precision: str = "fp32") -> Matrix:
        return cls(lambda: array, precision)

    @property
    def var(self):
        """(out, in) float32, not rounded; on the CPU read again at each call unless it is held as an array."""
        if self._var is not None:
            return self._var
        var = on_device(self._contents().decoded())
        if jt.flags.use_cuda:
            self._var = var
        return var

    def numpy(self) -> np.ndarray:
        """(out, in) float32, not rounded."""
        return self._contents().decoded() if self._var is None else self._var.numpy()

    def rows(self, ids: np.ndarray):
        """(N, in) float32: rows of the matrix, not rounded. Ids must have been checked."""
        if self._var is not None and jt.flags.use_cuda:
            return self._var[jt.array(ids)].stop_grad()
        return frozen(self.lookup()(ids))

    def lookup(self) -> Callable[[np.ndarray], np.ndarray]:
        """`rows` as a function in numpy. Of float32 the array is kept; of blocks only these rows are decoded."""
        if self.storage != FLOAT32:
            return lambda ids: self._contents().rows(ids)
        if self._table is None:
            # A GPU's array would be moved to the host.
            held = self._var is not None and not jt.flags.use_cuda
            self._table = Blocks.of(self._var.data) if held else self._contents()
        return self._table.rows

    def squares(self, axis: int):
        """Sums of squares, not rounded, along an axis: (out,) for 1, (in,) for 0; kept."""
        return self.form(("squares", axis), lambda w: jt.array(np.square(w, dtype=np.float64).sum(axis)).float32())

    def form(self, key: Hashable, pack: Pack):
        """What `pack` makes of the array; kept under `key`. A backend chooses both: the layouts are its own."""
        return self.stored_form(key, lambda blocks: pack(np.ascontiguousarray(blocks.decoded())))

    def stored_form(self, key: Hashable, pack: Callable[[Blocks], jt.Var | None]):
        """As `form`, of the matrix as it is stored."""
        if key not in self._forms:
            contents = self._contents()
            packed = pack(contents)
            self._forms[key] = None if packed is None else packed.stop_grad()
            release(contents.data)
        return self._forms[key]

    @property
    def _is_array(self) -> bool:
        return self.storage == FLOAT32 and self.precision != "bf16"

    def _contents(self) -> Blocks:
        return Blocks.of(self._read())


class TrainedMatrix(jt.Module):
    """A matrix (out, in) that takes a gradient, with the methods of `Matrix`.

    Args:
        var: the array, float32.
        precision: of its forms, and of products with it where there are kernels for gradients of weights; elsewhere
            they are in float32.
    """

    trained, storage = True, FLOAT32

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

    def lookup(self) -> Callable[[np.ndarray], np.ndarray]:
        """See `Matrix.lookup`; of the rows as they are now."""
        return Blocks.of(self.numpy()).rows

    def squares(self, axis: int):
        """See `Matrix.squares`; of the matrix as it is now, without a gradient."""
        return (self.var * self.var).sum(axis).detach()

    def form(self, key: Hashable, pack: Pack):
        """See `Matrix.form`; packed again at each call, as the array changes."""
        return pack(self.numpy())


def frozen(array: np.ndarray):
    """A float32 Jittor array that gets no gradient."""
    return as_var(np.ascontiguousarray(array, dtype=np.float32)).stop_grad()


def on_device(array: np.ndarray):
    """A Jittor array that gets no gradient, in the device's memory alone: of an array from Python, Jittor keeps a copy
    in pinned memory of the host as long as it lives."""
    var = as_var(np.ascontiguousarray(array))
    if jt.flags.use_cuda:
        var = var.copy()
        var.sync()
    return var.stop_grad()


def as_var(array: np.ndarray):
    """`array` as a Jittor array. Jittor would take one of shape (1,) for a constant, and compile an operator for it."""
    return jt.array(array[None]).reshape((1,)) if array.shape == (1,) else jt.array(array)
