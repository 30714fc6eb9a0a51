"""Putting adapters into a network, activating them, and taking them out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Container, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.lora.adapted import (
    ActiveAdapters,
    AdaptedModule,
    MergeableModule,
    TrainableCopy,
    buffers_of,
    parameters_of,
)
from jittor_lora.lora.adapter import Adapter, Version, check_fit
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.kinds import kind_of, stand_in
from jittor_lora.lora.places import Place, places
from jittor_lora.lora.selection import Selection, base_modules, select, trained_shapes
from jittor_lora.lora.token_rows import TokenRows
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.system.runtime import jt

DEFAULT = "default"
_ATTRIBUTE = "_jittor_lora_adapters"


class Adapters(Mapping[str, Adapter]):
    """The adapters of one network by name, and which of them are active.

    The base's own arrays are never changed: with no adapter active the network computes the same bits as the base.
    """

    def __init__(self, model: jt.Module):
        self._model, self._adapters, self._active = model, {}, ActiveAdapters()

    def __getitem__(self, name: str) -> Adapter:
        return self._adapters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def named(self, name: str) -> Adapter:
        """
        Raises:
            UserError: no such adapter.
        """
        self._check([name])
        return self._adapters[name]

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the active adapters, in the order in which their updates are applied."""
        return self._active.names

    def add(self, config: LoraConfig, name: str = DEFAULT, seed: int = 0,
            arrays: Mapping[str, np.ndarray] | None = None,
            token_rows: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None) -> Adapter:
        """Put an adapter into the network. The first one is active at once, others once they are activated.

        Args:
            seed: of the random initialisation.
            arrays: the trained arrays, see `Adapter.parameters`; by default they are initialised.
            token_rows: module → ids of tokens and their rows, see `TokenRows`.

        Raises:
            UserError: the name is taken; the settings do not fit the network (see `select`); or an array is missing,
                unexpected or misshapen.
        """
        if not name or "." in name or name == "base":
            raise UserError(f"adapter name {name!r}: expected a name without dots, other than base.")
        if name in self._adapters:
            raise UserError(f"adapter {name}: the name is taken; delete that adapter first, or choose another name.")
        shapes = trained_shapes(self._model, config)
        bases = base_modules(self._model)
        selection = select(self._model, config)
        if arrays is not None:
            states = {f"{module}.{part}": getattr(bases[module], part).shape
                      for module in selection.saved for part in buffers_of(bases[module])}
            check_fit({**shapes, **{state: shape for state, shape in states.items() if state in arrays}}, arrays)
        trained, token_rows = _by_module(arrays or {}, bases), token_rows or {}
        _refuse_two_kinds(selection, token_rows)
        versions: dict[str, Version] = {}
        for module, base in bases.items():
            values = trained.get(module)
            if module in token_rows:
                tied = next((version for name, version in versions.items() if isinstance(version, TokenRows)
                             and bases[name].weight is base.weight and token_rows[name] is token_rows[module]), None)
                versions[module] = TokenRows(base, *token_rows[module], tied)
            elif module in selection.targets:
                biased = module in selection.biased
                versions[module] = kind_of(base).update(base, config, module, seed, biased, values)
            elif module in selection.saved or module in selection.biased:
                versions[module] = TrainableCopy(base, module in selection.saved, values)
        for place in places(self._model):
            if place.name in versions:
                self._adapted(place).versions[name] = versions[place.name]
        self._adapters[name] = Adapter(name, config, versions)
        if not isinstance(self._model, CausalLM):  # whose arrays are frozen
            self._active.hold(self._model, self._untrained())
        if len(self._adapters) == 1:
            self._active.names = (name,)
        return self._adapters[name]

    def activate(self, *names: str) -> None:
        """Make these adapters the active ones, applied in this order; without names, none.

        Raises:
            UserError: no such adapter; or two of them train the same bias or the same module whole.
        """
        self._check(names)
        wrong = []
        for place in places(self._model):
            versions = {n: place.module.versions[n] for n in names
                        if isinstance(place.module, AdaptedModule) and n in place.module.versions}
            whole = [n for n, v in versions.items() if isinstance(v, TrainableCopy) and v.trained.keys() != {"bias"}]
            biases = [n for n, v in versions.items() if "bias" in v.trained]
            if len(biases) > 1 or (whole and len(versions) > 1):
                wrong.append(f"{place.name}: only one adapter can replace its weight or bias, found "
                             f"{', '.join(versions)}")
        if wrong:
            raise UserError("These adapters cannot be active together:\n  " + "\n  ".join(some_of_each(wrong)))
        self._active.names = tuple(names)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block no adapter is active."""
        with self.only():
            yield

    @contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Within the block these adapters are active, for all rows.

        Raises:
            UserError: no such adapter.
        """
        self._check(names)
        with self._rows_alike(), self._active.only(*names):
            yield

    @contextmanager
    def by_row(self, names: Sequence[str | None]) -> Iterator[None]:
        """Within the block each row of a stream uses its own adapter: a mixed batch.

        Rows see keys and values of other rows, so a prefix and its branches must have the same adapter.

        Args:
            names: (N,) the adapter of each row, None for the base alone; streams must have N rows.

        Raises:
            UserError: no such adapter.
        """
        used = tuple(name for name in dict.fromkeys(names) if name is not None)
        self._check(used)
        before = self._active.of_rows, self._model.row_adapters
        self._active.of_rows, self._model.row_adapters = used, list(names)
        try:
            yield
        finally:
            self._active.of_rows, self._model.row_adapters = before

    def delete(self, name: str) -> None:
        """Take an adapter out of the network; modules that no other adapter uses become the base's own again.

        Raises:
            UserError: no such adapter.
        """
        self._check([name])
        adapter = self._adapters.pop(name)
        self.unmerge()
        self._active.names = tuple(n for n in self._active.names if n != name)
        for place in places(self._model):
            if place.name in adapter.versions:
                del place.module.versions[name]
                if not place.module.versions:
                    place.put(place.module.base)

    def merge(self) -> None:
        """Merge the updates of the active adapters into weights, which they use until `unmerge`.

        Raises:
            UserError: an update cannot be merged; all are listed, and none is merged.
        """
        problems = [problem for problem in (layer.merge_problem() for layer in self._mergeable()) if problem]
        if problems:
            raise UserError("These updates cannot be merged:\n  " + "\n  ".join(some_of_each(problems)))
        for layer in self._mergeable():
            layer.merge()

    def unmerge(self) -> None:
        """Use the frozen weights and the updates beside them again."""
        for layer in self._mergeable():
            layer.unmerge()

    def _mergeable(self) -> list[MergeableModule]:
        return [place.module for place in places(self._model) if isinstance(place.module, MergeableModule)]

    def _adapted(self, place: Place) -> AdaptedModule:
        """The adapted module in this place, put there if it is still the base's."""
        if isinstance(place.module, AdaptedModule):
            return place.module
        adapted = stand_in(place.module)(place.module, self._active, place.name)
        place.put(adapted)
        return adapted

    @contextmanager
    def _rows_alike(self) -> Iterator[None]:
        """Within the block there is no mixed batch."""
        if not isinstance(self._model, CausalLM):  # only our networks know of any
            yield
            return
        before, self._model.row_adapters = self._model.row_adapters, None
        try:
            yield
        finally:
            self._model.row_adapters = before

    def _untrained(self) -> list[jt.Var]:
        """The network's arrays but those that adapters train; also of layers in lists, which Jittor does not count."""
        trained = {id(array) for adapter in self.values() for array in adapter.parameters().values()}
        own = [getattr(base, part) for base in base_modules(self._model).values() for part in parameters_of(base)]
        return [array for array in {id(array): array for array in (*self._model.parameters(), *own)}.values()
                if id(array) not in trained]

    def _check(self, names: Sequence[str]) -> None:
        unknown = [str(name) for name in names if name not in self._adapters]
        if unknown:
            raise no_such_adapter(unknown, self._adapters)


def no_such_adapter(unknown: Sequence[str], known: Iterable[str]) -> UserError:
    return UserError(f"adapter {', '.join(unknown)}: not found; there is {', '.join(known) or 'none'}.")


def adapters_of(module: jt.Module) -> Adapters:
    """The adapters of a network or of any Jittor module; empty at first."""
    if _ATTRIBUTE not in vars(module):
        setattr(module, _ATTRIBUTE, Adapters(module))
    return getattr(module, _ATTRIBUTE)


def inject(model: jt.Module, config: LoraConfig, seed: int = 0, name: str = DEFAULT,
           arrays: Mapping[str, np.ndarray] | None = None,
           token_rows: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None) -> Adapter:
    """`Adapters.add` for this network."""
    return adapters_of(model).add(config, name, seed, arrays, token_rows)


def _refuse_two_kinds(selection: Selection, token_rows: Mapping[str, object]) -> None:
    both = [name for name in token_rows if name in selection.targets or name in selection.saved]
    if both:
        raise UserError(f"{', '.join(both)}: expected rows of single tokens, or an update, or a module that is saved "
                        "whole; found two of these.")


def _by_module(arrays: Mapping[str, np.ndarray], modules: Container[str]) -> dict[str, dict[str, np.ndarray]]:
    """Name of a module → its arrays by the rest of their names."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        while module not in modules:  # of an attention there is "out_proj.lora_A"
            module, _, above = module.rpartition(".")
            part = f"{above}.{part}"
        found.setdefault(module, {})[part] = array
    return found
