"""A module of the base network with what adapters make of it, by name, and the choice which of them act."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Iterator, Sequence

import numpy as np

from jittor_lora.model.modules import RowLabels, in_order
from jittor_lora.ops import Matrix, TrainedMatrix
from jittor_lora.system.runtime import jt


class Choice:
    """Which adapters act, for all modules of a network alike.

    Attributes:
        active: their names; updates are applied in this order.
        labels: where rows differ, of each row the name of its adapter, None for the base alone; `active` is put aside
            then.
    """

    def __init__(self):
        self.active: tuple[str, ...] = ()
        self.labels: RowLabels | None = None

    def names(self) -> tuple[str, ...]:
        """All that act on some row."""
        if self.labels is None:
            return self.active
        return tuple(name for name in self.labels.distinct() if name is not None)

    @contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Within the block these adapters act, and on all rows."""
        before = self.active, self.labels
        self.active, self.labels = names, None
        try:
            yield
        finally:
            self.active, self.labels = before


class TrainableCopy(jt.Module):
    """A module with parameters of its own in place of the base's (`modules_to_save`), or with a bias of its own.

    Attributes:
        module: the copy; what is not trained is the base's very array.
    """

    def __init__(self, base: jt.Module, whole: bool):
        super().__init__()
        self.module = copy.copy(base)
        self.trained: dict[str, jt.Var] = {}
        if whole:
            if isinstance(base.weight, Matrix):
                self.trained["weight"] = jt.array(base.weight.numpy().copy())
                self.module.weight = TrainedMatrix(self.trained["weight"], base.weight.precision)
            else:
                self.module.weight = self.trained["weight"] = _copy(base.weight)
        if getattr(base, "bias", None) is not None:
            self.module.bias = self.trained["bias"] = _copy(base.bias)


class Adapted(jt.Module):
    """In the place of `base`, computes what the adapters that act make of it.

    Args:
        base: a leaf of the network: linear layer, embedding or norm.
        choice: of the network.
        name: the module's.

    Attributes:
        versions: name of an adapter → what it has here: a `TrainableCopy`, or an update of a subclass's kind.
    """

    def __init__(self, base: jt.Module, choice: Choice, name: str):
        super().__init__()
        self.base, self.choice, self.name = base, choice, name
        self.versions: dict[str, jt.Module] = {}

    def execute(self, x):
        labels = self.choice.labels
        if labels is None:
            return self.run(x, self.choice.active)
        parts = labels.parts(x.shape[0])
        if len(parts) == 1:
            return self.run(x, names_of(parts[0][0]))
        return in_order([(rows, self.run(x[rows if isinstance(x, np.ndarray) else jt.array(rows)], names_of(label)))
                         for label, rows in parts])

    def run(self, x, names: Sequence[str]):
        """What the adapters of these names make of x."""
        return self.module(names)(x)

    def module(self, names: Sequence[str] | None = None) -> jt.Module:
        """The copy that one of the adapters has in place of the base, or the base; by default of those that act."""
        return next((v.module for v in self.acting_versions(names) if isinstance(v, TrainableCopy)), self.base)

    def acting_versions(self, names: Sequence[str] | None = None) -> list[jt.Module]:
        names = self.choice.active if names is None else names
        return [self.versions[name] for name in names if name in self.versions]

    @property
    def weight(self):
        return self.module().weight

    @property
    def bias(self):
        return self.module().bias

    def effective_weight(self) -> np.ndarray:
        """As it acts, in float32."""
        return self.weight.numpy()

    def effective_bias(self) -> np.ndarray:
        return self.bias.numpy()

    def dfs(self, parents, key, callback, callback_leave=None, recurse=True):
        """Jittor's walk over modules, for `parameters`: of the versions only those that act."""
        children = {"base": self.base, **{n: self.versions[n] for n in self.choice.names() if n in self.versions}}
        if callback(parents, key, self, len(children)) is False:
            return
        if recurse:
            for name, child in children.items():
                parents.append(self)
                child.dfs(parents, name, callback, callback_leave)
                parents.pop()
        if callback_leave:
            callback_leave(parents, key, self, len(children))


def names_of(label: str | None) -> tuple[str, ...]:
    return () if label is None else (label,)


def _copy(array: jt.Var) -> jt.Var:
    return jt.array(array.numpy().copy())
