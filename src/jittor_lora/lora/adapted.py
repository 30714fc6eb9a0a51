"""A module of the base with the adapters' versions of it, and which adapters are active."""

from __future__ import annotations

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
        network: of a module that is not one of our networks, the module.
        frozen: its arrays to keep frozen.
        may_be_unfrozen: whether Jittor's `train` may have unfrozen them since `freeze`.
    """

    def __init__(self):
        self.names: tuple[str, ...] = ()
        self.of_rows: tuple[str, ...] | None = None
        self.network: jt.Module | None = None
        self.frozen: list[jt.Var] = []
        self.may_be_unfrozen = False

    def in_use(self) -> tuple[str, ...]:
        """The adapters that some row uses."""
        return self.names if self.of_rows is None else self.of_rows

    def hold(self, network: jt.Module, arrays: Sequence[jt.Var]) -> None:
        """Freeze these arrays of a network, and keep them frozen."""
        self.network, self.frozen, self.may_be_unfrozen = network, list(arrays), True
        self.freeze()

    def freeze(self) -> None:
        """Freeze again what Jittor's `train` has unfrozen, which restores what was trained when `eval` was first
        called."""
        if self.may_be_unfrozen:
            for array in self.frozen:
                if not array.is_stop_grad():
                    array.stop_grad()
            self.may_be_unfrozen = False

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
        values: the trained arrays, by the names in `trained`, and buffers such as running statistics; by default the
            base's.

    Attributes:
        module: the copy; parameters that are not trained are the base's own arrays.
        trained: those of its parameters that are trained, float32.
    """

    def __init__(self, base: jt.Module, whole: bool, values: Mapping[str, np.ndarray] | None = None):
        super().__init__()
        self.module = shallow_copy(base)
        parts = parameters_of(base) if whole else ["bias"]
        if values is None:
            values = {part: getattr(base, part).numpy().copy() for part in parts if part in parameters_of(base)}
        self.trained = trained_arrays(values, parts)
        for part, array in self.trained.items():
            own = getattr(base, part)
            setattr(self.module, part, TrainedMatrix(array, own.precision) if isinstance(own, Matrix) else array)
        self._state = buffers_of(base) if whole else []
        for part in self._state:
            value = values.get(part, getattr(base, part).numpy())
            setattr(self.module, part, jt.array(np.array(value)).stop_grad())

    def state(self) -> dict[str, jt.Var]:
        """What the copy changes by itself: running statistics."""
        return {part: getattr(self.module, part) for part in self._state}


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


class MergeableModule(AdaptedModule):
    """An adapted module whose updates can be merged into its weight."""

    def __init__(self, base: jt.Module, active: ActiveAdapters, name: str):
        super().__init__(base, active, name)
        self._merged: tuple[tuple[str, ...], Matrix] | None = None

    def merge(self) -> None:
        """Merge the active updates into a weight that replaces the frozen one while these adapters are active."""
        self._merged = self.active.names, self.as_matrix(self.effective_weight())

    def unmerge(self) -> None:
        """Use the frozen weight, which was not changed, and the updates beside it again."""
        self._merged = None

    def merge_problem(self) -> str | None:
        """Why the active updates cannot be merged, or None."""
        return None

    def merged(self, names: Sequence[str]):
        """The weight with the updates of these adapters, if they are merged, else None."""
        return self._merged[1] if self._merged is not None and self._merged[0] == tuple(names) else None

    def matrix(self, weight):
        """A module's weight as the operators take it."""
        return weight

    def as_matrix(self, array: np.ndarray):
        """The same of an array, frozen."""
        return Matrix.of(array, self.base.weight.precision)


def shallow_copy(module: jt.Module) -> jt.Module:
    """A module with the same attributes. (`copy.copy` fails for Jittor's `MultiheadAttention`.)"""
    copied = type(module).__new__(type(module))
    vars(copied).update(vars(module))
    return copied


def parameters_of(module: jt.Module) -> list[str]:
    """The attributes that are a module's own parameters."""
    return [name for name, value in vars(module).items()
            if isinstance(value, (Matrix, TrainedMatrix)) or (_is_array(name, value) and not _is_buffer(name, value))]


def buffers_of(module: jt.Module) -> list[str]:
    """The attributes that are state without being trained: running statistics, and what was registered as a buffer."""
    return [name for name, value in vars(module).items() if _is_array(name, value) and _is_buffer(name, value)]


def _is_array(name: str, value) -> bool:
    return isinstance(value, jt.Var) and not name.startswith("_")


def _is_buffer(name: str, value: jt.Var) -> bool:
    return name.startswith("running_") or hasattr(value, "persistent") or not value.dtype.is_float()


def trained_arrays(values: Mapping[str, np.ndarray], parts: Sequence[str]) -> dict[str, jt.Var]:
    """Float32 arrays that take gradients, of those `parts` that have a value, in their order."""
    return {part: jt.array(np.ascontiguousarray(values[part], np.float32)) for part in parts if part in values}
