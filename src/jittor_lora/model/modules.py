"""What both families of networks are built from: frozen weights, linear layer, embedding, the pass over a stream."""

from __future__ import annotations

from typing import Any, Hashable, Iterator, Mapping, NamedTuple, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.model.cache import KeyValueCache
from jittor_lora.ops import AttentionPlan, Matrix, as_var, frozen
from jittor_lora.system.runtime import jt


class Weights:
    """The tensors of a checkpoint below one name, as what the network computes with.

    Args:
        tensors: canonical name → array in the checkpoint's orientation.
        precision: of the matrices, see `Matrix`.
        prefix: "" or a name that ends in a dot.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], precision: str = "fp32", prefix: str = ""):
        self._tensors, self._precision, self._prefix = tensors, precision, prefix

    def at(self, name: str) -> Weights:
        return Weights(self._tensors, self._precision, f"{self._prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def __getitem__(self, name: str):
        """A vector, or a table that no product is taken with."""
        return frozen(self._tensors[self._prefix + name])

    def matrix(self, name: str, transposed: bool = False) -> Matrix:
        """The matrix (out, in) of this name; `transposed`: stored as (in, out)."""
        tensors, whole = self._tensors, self._prefix + name
        return Matrix(lambda: tensors[whole].T if transposed else tensors[whole], self._precision)

    def embedding(self, name: str) -> Embedding:
        return Embedding(self.at(name).matrix("weight"))

    def linear(self, name: str) -> Linear:
        """A layer whose weight is stored (out, in)."""
        w = self.at(name)
        return Linear(w.matrix("weight"), w["bias"] if "bias" in w else None)

    def conv1d(self, name: str) -> Linear:
        """A layer whose weight is stored (in, out), as GPT-2's are; it is (out, in) here like every other."""
        w = self.at(name)
        return Linear(w.matrix("weight", transposed=True), w["bias"] if "bias" in w else None, stored_transposed=True)


class Embedding(jt.Module):
    """Rows of a table. weight: (rows, D)."""

    def __init__(self, weight: Matrix):
        super().__init__()
        self.weight = weight

    @property
    def table(self) -> np.ndarray:
        """(rows, D) float32 as it acts."""
        return self.weight.table

    def execute(self, ids: np.ndarray):
        """(N,) int32, checked → (N, D)."""
        return self.weight.rows(ids)


class Linear(jt.Module):
    """x · weightᵀ + bias.

    Args:
        weight: (out, in), frozen. bias: (out,) or None.
        stored_transposed: the checkpoint holds the weight as (in, out).
    """

    def __init__(self, weight: Matrix, bias=None, stored_transposed: bool = False):
        super().__init__()
        self.weight, self.bias, self.stored_transposed = weight, bias, stored_transposed

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def acting(self):
        """What it computes with: weight, bias, and no low-rank update."""
        return self.weight, self.bias, None

    def matrix(self, label: Hashable = None) -> Matrix:
        """All that a row x is multiplied with, whatever its label."""
        return self.weight

    def execute(self, x):
        return ops.linear(x, self.weight, self.bias)


class Pass:
    """One run of the network over a stream: what each layer's attention needs besides its queries, keys and values.

    Args:
        positions: (N,) int32.
        layout: which keys each row sees: rows of the stream, or rows of the cache if there is one.
        cache, rows: the cache that this run's keys and values are written to, and its rows for them, (N,) int32.
        wanted: the rows that go on after the attention, (M,), ascending; None for all. Of these alone there are
            queries; keys and values are of all N.
        precision: of the attention's products, "fp32" or "bf16".
    """

    def __init__(self, positions: np.ndarray, layout: Layout, cache: KeyValueCache | None = None, rows=None,
                 wanted: np.ndarray | None = None, precision: str = "fp32"):
        self.positions, self._layout, self._precision = positions, layout, precision
        self._cache, self._rows = cache, rows
        self._wanted = None if wanted is None else as_var(np.asarray(wanted, np.int32)).stop_grad()
        self._plan = AttentionPlan(layout if wanted is None else layout.restricted(wanted), precision)

    def ending_in(self, wanted: np.ndarray | None) -> Pass:
        """This run in the last block, of which only the rows `wanted` are asked for."""
        if wanted is None:
            return self
        return Pass(self.positions, self._layout, self._cache, self._rows, wanted, self._precision)

    @property
    def is_partial(self) -> bool:
        """Do only some rows go on after the attention?"""
        return self._wanted is not None

    def wanted(self, x):
        """The rows of x (N, …) that go on: (M, …)."""
        return x if self._wanted is None else ops.rows(x, self._wanted)

    def attend(self, layer: int, q, k, v):
        """q (N, H, d), k and v (N, G, d) of this layer: attended values, (N, H · d)."""
        if self._cache is not None:
            k, v = self._cache.write(layer, self._rows, k, v)
        return ops.attention(q, k, v, self._plan)

    def attend_fused(self, layer: int, qkv, heads: int):
        """As `attend`, of queries, keys and values beside each other, (N, 3 · D)."""
        if self._cache is None:
            return ops.fused_attention(qkv, heads, self._plan, self._wanted)
        n, width = qkv.shape[0], qkv.shape[1] // 3
        q, k, v = (qkv[:, i * width : (i + 1) * width].reshape((n, heads, width // heads)) for i in range(3))
        return self.attend(layer, self.wanted(q), k, v)


class RowLabels:
    """A label for each row of a run, for modules that do not treat all rows alike.

    Args:
        labels: (N,), of any kind.
    """

    def __init__(self, labels: Sequence[Hashable]):
        self._all = self._wanted = self._asked = list(labels)

    def begin(self, rows: int, wanted: np.ndarray | None, asked: Sequence[int] | None) -> None:
        """A run over `rows` rows begins, of which in the last block only `wanted` go on; final states are of `asked`.

        Raises:
            ValueError: it is not for as many rows as there are labels.
        """
        if rows != len(self._all):
            raise ValueError(f"{rows} rows are read, and {len(self._all)} have labels")
        self._wanted = self._all if wanted is None else [self._all[row] for row in wanted]
        self._asked = self._all if asked is None else [self._all[row] for row in asked]

    def distinct(self) -> list[Hashable]:
        return list(dict.fromkeys(self._all))

    def parts(self, rows: int) -> list[tuple[Hashable, np.ndarray]]:
        """Each label with the rows (ascending) that have it, of all rows or, if there are as many, the wanted ones."""
        labels = self._all if rows == len(self._all) else self._wanted
        if rows != len(labels):
            raise ValueError(f"{rows} rows are computed, neither all {len(self._all)} nor the {len(labels)} wanted")
        return _of_each(labels)

    def asked(self) -> list[tuple[Hashable, np.ndarray]]:
        """Each label with the final states that have it."""
        return _of_each(self._asked)


def _of_each(labels: Sequence[Hashable]) -> list[tuple[Hashable, np.ndarray]]:
    return [(label, np.flatnonzero([other == label for other in labels]).astype(np.int32))
            for label in dict.fromkeys(labels)]


def in_order(parts: Sequence[tuple[np.ndarray, Any]]):
    """The rows of several arrays, each with its place in the whole, as one array."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([rows for rows, _ in parts])).astype(np.int32)
    return jt.concat([found for _, found in parts], 0)[jt.array(order)]


class Leaf(NamedTuple):
    """A module with a weight of its own: its dotted name, the module that holds it, and under which attribute."""

    name: str
    holder: jt.Module
    attribute: str
    module: jt.Module


def leaves(module: jt.Module, prefix: str = "") -> Iterator[Leaf]:
    """Every module below `module` that has a weight, in the order of the network."""
    for attribute, child in list(vars(module).items()):
        name = f"{prefix}{attribute}"
        if isinstance(child, (list, tuple)):
            for index, item in enumerate(child):
                if isinstance(item, jt.Module):
                    yield from leaves(item, f"{name}.{index}.")
        elif isinstance(child, jt.Module):
            if hasattr(child, "weight"):
                yield Leaf(name, module, attribute, child)
            else:
                yield from leaves(child, f"{name}.")
