"""The building blocks of the networks: frozen weights, linear layer, embedding."""

from __future__ import annotations

from typing import Callable, Iterator, Mapping, NamedTuple, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.model.rows import ALL_ALIKE, Rows
from jittor_lora.ops import Matrix, frozen
from jittor_lora.ops.blocks import stored_in
from jittor_lora.system.runtime import jt


class Weights:
    """The tensors of a checkpoint under one prefix, in the form the network computes with.

    Args:
        tensors: canonical name → array in the checkpoint's orientation; with a method `stored`, see `ops.blocks`.
        precision: of the matrices, see `Matrix`.
        prefix: "" or a name ending in a dot.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], precision: str = "fp32", prefix: str = ""):
        self._tensors, self._precision, self._prefix = tensors, precision, prefix

    def at(self, name: str) -> Weights:
        return Weights(self._tensors, self._precision, f"{self._prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def __getitem__(self, name: str):
        """A vector."""
        return frozen(self._tensors[self._prefix + name])

    def matrix(self, name: str, transposed: bool = False) -> Matrix:
        """The matrix of this name as (out, in); `transposed`: stored as (in, out)."""
        tensors, whole = self._tensors, self._prefix + name

        def read():
            stored = stored_in(tensors, whole)
            if stored is not None:
                return stored
            return tensors[whole].T if transposed else tensors[whole]

        return Matrix(read, self._precision)

    def embedding(self, name: str) -> Embedding:
        return Embedding(self.at(name).matrix("weight"))

    def linear(self, name: str) -> Linear:
        """A layer whose weight is stored (out, in)."""
        w = self.at(name)
        return Linear(w.matrix("weight"), w["bias"] if "bias" in w else None)

    def conv1d(self, name: str) -> Linear:
        """A layer whose weight is stored (in, out), as in GPT-2; in memory it is (out, in) like all others."""
        w = self.at(name)
        return Linear(w.matrix("weight", transposed=True), w["bias"] if "bias" in w else None, stored_transposed=True)


class Embedding(jt.Module):
    """Looks up rows of a table.

    Args:
        weight: (rows, D), frozen.
    """

    def __init__(self, weight: Matrix):
        super().__init__()
        self.weight = weight

    def for_inference(self) -> Callable[[Sequence[int]], np.ndarray]:
        """A function that looks up rows as they are now, whatever is trained later: N ids → (N, D) float32."""
        return self.weight.lookup()

    def execute(self, ids: np.ndarray, rows: Rows = ALL_ALIKE):
        """(N,) int32, checked by the caller → (N, D)."""
        return ops.embedding(self.weight, ids)


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
    def out_features(self) -> int:
        return self.weight.shape[0]

    def for_inference(self):
        """Weight, bias, and no low-rank update; see `LoraLinear.for_inference`."""
        return self.weight, self.bias, None

    def head_matrix(self, adapters: Sequence[str] | None = None) -> Matrix:
        """The matrix (out, in) that this layer multiplies by, whatever the adapters."""
        return self.weight

    def execute(self, x, rows: Rows = ALL_ALIKE):
        """(N, in) → (N, out)."""
        return ops.linear(x, self.weight, self.bias)


class LeafModule(NamedTuple):
    """A module that holds a weight: its dotted name, its parent, and the parent's attribute that holds it."""

    name: str
    parent: jt.Module
    attribute: str
    module: jt.Module


def leaf_modules(module: jt.Module, prefix: str = "") -> Iterator[LeafModule]:
    """Every module below `module` that holds a weight, in the network's order; an adapted one is not entered."""
    for attribute, child in list(vars(module).items()):
        name = f"{prefix}{attribute}"
        if isinstance(child, (list, tuple)):
            for index, item in enumerate(child):
                if isinstance(item, jt.Module):
                    yield from leaf_modules(item, f"{name}.{index}.")
        elif isinstance(child, jt.Module):
            if hasattr(child, "weight"):
                yield LeafModule(name, module, attribute, child)
            else:
                yield from leaf_modules(child, f"{name}.")
