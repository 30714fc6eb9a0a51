"""A module of the base with the adapters' versions of it, and which adapters are active."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Iterator, Mapping, Sequence

import numpy as np

from jittor_lora.model.rows import ALL_ALIKE, Rows, in_order
from jittor_lora.ops import Matrix, TrainedMatrix
from jittor_lora.system.runtime import jt


class ActiveAdapters:
    """Which adapters are active, for all modules of a network.

    Attributes:
        names: the active adapters; their updates are applied in this order.
        of_rows: in a mixed batch, the adapters that some row uses, in place of `names`; else None.
    """

    def __init__(self):
        self.names: tuple[str, ...] = ()
        self.of_rows: tuple[str, ...] | None = None

    def in_use(self) -> tuple[str, ...]:
        """The adapters that some row uses."""
        return self.names if self.of_rows is None else self.of_rows

    @contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Within the block these adapters are active, for all rows."""
        before = self.names, self.of_rows
        self.names, self.of_rows = names, None
        try:
            yield
        finally:
            self.names, self.of_rows = before


class TrainableCopy(jt.Module):
    """A copy of a base module that is trained in its place (PEFT's `modules_to_save`), or of which the bias is.

    Args:
        whole: all parameters are trained, else the bias alone.
        values: the trained arrays, by the names in `trained`; by default the base's.

    Attributes:
        module: the copy; parameters that are not trained are the base's own arrays.
        trained: "weight" and "bias", those that are trained, float32.
    """

    def __init__(self, base: jt.Module, whole: bool, values: Mapping[str, np.ndarray] | None = None):
        super().__init__()
        self.module = copy.copy(base)
        if values is None:
            parts = [part for part in ("weight", "bias")
                     if getattr(base, part, None) is not None and (whole or part == "bias")]
            values = {part: getattr(base, part).numpy().copy() for part in parts}
        self.trained = trained_arrays(values, ("weight", "bias"))
        for part, array in self.trained.items():
            own = getattr(base, part)
            setattr(self.module, part, TrainedMatrix(array, own.precision) if isinstance(own, Matrix) else array)


class AdaptedModule(jt.Module):
    """Stands in for `base` and applies the active adapters.

    Args:
        base: a leaf module of the network: linear layer, embedding or norm.
        active: shared by all modules of the network.
        name: dotted name of the module.

    Attributes:
        versions: adapter name → its version of the module: a `TrainableCopy`, or an update, see the subclasses.
    """

    def __init__(self, base: jt.Module, active: ActiveAdapters, name: str):
        super().__init__()
        self.base, self.active, self.name = base, active, name
        self.versions: dict[str, jt.Module] = {}

    def execute(self, x, rows: Rows = ALL_ALIKE):
        """As `base` of x (N, …); in a mixed batch, group by group."""
        if rows.by_adapter is None:
            return self.run(x, self.active.names, rows.mask_start)
        if len(rows.by_adapter) == 1:
            return self.run(x, rows.by_adapter[0][0], rows.mask_start)
        return in_order([(own, self.run(x[own if isinstance(x, np.ndarray) else jt.array(own)], names, rows.mask_start))
                         for names, own in rows.by_adapter])

    def run(self, x, names: Sequence[str], mask_start: int = 0):
        """Apply the adapters with these names.

        Args:
            mask_start: row of the dropout masks for the first row of x.
        """
        return self.module(names)(x)

    def module(self, names: Sequence[str] | None = None) -> jt.Module:
        """The trainable copy that one of these adapters has, by default of the active ones; else the base."""
        return next((v.module for v in self.versions_of(names) if isinstance(v, TrainableCopy)), self.base)

    def versions_of(self, names: Sequence[str] | None = None) -> list[jt.Module]:
        """The versions of these adapters, by default the active ones, as far as they have one."""
        names = self.active.names if names is None else names
        return [self.versions[name] for name in names if name in self.versions]

    @property
    def weight(self):
        return self.module().weight

    @property
    def bias(self):
        return self.module().bias

    def effective_weight(self) -> np.ndarray:
        """The weight with the active adapters merged in, float32."""
        return self.weight.numpy()

    def effective_bias(self) -> np.ndarray:
        """The bias with the active adapters applied, float32."""
        return self.bias.numpy()

    def dfs(self, parents, key, callback, callback_leave=None, recurse=True):
        """Jittor's traversal, which `parameters` uses: only versions in use are entered."""
        children = {"base": self.base, **{n: self.versions[n] for n in self.active.in_use() if n in self.versions}}
        if callback(parents, key, self, len(children)) is False:
            return
        if recurse:
            for name, child in children.items():
                parents.append(self)
                child.dfs(parents, name, callback, callback_leave)
                parents.pop()
        if callback_leave:
            callback_leave(parents, key, self, len(children))


def trained_arrays(values: Mapping[str, np.ndarray], parts: Sequence[str]) -> dict[str, jt.Var]:
    """Float32 arrays that take gradients, of those `parts` that have a value, in their order."""
    return {part: jt.array(np.ascontiguousarray(values[part], np.float32)) for part in parts if part in values}
