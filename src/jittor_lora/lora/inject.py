"""Putting adapters into a network, and finding them again."""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from types import MappingProxyType
from typing import Hashable, Iterator, Mapping, Sequence

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.lora.adapted import Adapted, Choice, TrainableCopy
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.embedding import EmbeddingUpdate, LoraEmbedding
from jittor_lora.lora.layer import LoraLinear, Update, is_fused_qkv
from jittor_lora.lora.targets import match_saved, match_targets, short_names
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import Embedding, Leaf, Linear, RowLabels, leaves
from jittor_lora.system.runtime import jt

DEFAULT = "default"


class Adapter:
    """One adapter of a network.

    Args:
        name: by which it is switched on.
        config: what it was made from.
        versions: name of a module → what it has there: an update, or a copy; in the network's order.
    """

    def __init__(self, name: str, config: LoraConfig, versions: dict[str, Update | EmbeddingUpdate | TrainableCopy]):
        self.name, self.config, self.versions = name, config, versions

    @property
    def updates(self) -> dict[str, Update | EmbeddingUpdate]:
        """Name of a module → this adapter's update in it."""
        return {name: version for name, version in self.versions.items() if not isinstance(version, TrainableCopy)}

    def parameters(self) -> dict[str, jt.Var]:
        """The trained arrays in the order of the network: "<module>.lora_A" (r, in), ".lora_B" (out, r),
        ".lora_magnitude_vector" (out,), ".bias" (out,), ".lora_embedding_A" (r, rows), ".lora_embedding_B" (D, r), and
        ".weight" of modules that are trained whole, matrices as (out, in)."""
        return {f"{name}.{part}": array for name, version in self.versions.items()
                for part, array in version.trained.items()}

    def initial(self) -> dict[str, np.ndarray]:
        """What a start took out of the base's weights: "<module>.lora_A", "<module>.lora_B"; empty without one."""
        return {name: array.numpy() for name, array in self._initial().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the trained arrays, all of them, to these values.

        Raises:
            UserError: a missing, unexpected or misshapen array; all are listed.
        """
        set_arrays(self.parameters(), arrays)

    def load_initial(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set what the start took out of the base's weights; see `initial`.

        Raises:
            UserError: as `load`.
        """
        set_arrays(self._initial(), arrays)

    def count(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(p.shape)) for p in self.parameters().values())

    def set_dropout(self, *key: int, rows: Mapping[int, int] = MappingProxyType({})) -> None:
        """Choose the masks of the next run by these numbers (seed, step, stream); without numbers no dropout.

        Args:
            rows: number of rows of an input → the row of the mask that its first one takes; 0 for other numbers.
        """
        for name, update in self._linear_updates():
            update.dropout_rows = rows
            update.dropout_seed = seed_of(*key, zlib.crc32(f"{self.name} {name}".encode())) if key else None

    def _initial(self) -> dict[str, jt.Var]:
        return {f"{name}.{part}": array for name, update in self._linear_updates()
                for part, array in zip(("lora_A", "lora_B"), update.initial or ())}

    def _linear_updates(self) -> Iterator[tuple[str, Update]]:
        return ((name, version) for name, version in self.versions.items() if isinstance(version, Update))


class Adapters(Mapping[str, Adapter]):
    """The adapters of one network, by name, and which of them act.

    The base's own arrays are never changed: with no adapter active the network computes what the base does, to the bit.
    """

    def __init__(self, model: CausalLM):
        self._model, self._adapters, self._choice = model, {}, Choice()

    def __getitem__(self, name: str) -> Adapter:
        return self._adapters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    @property
    def active(self) -> tuple[str, ...]:
        return self._choice.active

    def add(self, config: LoraConfig, name: str = DEFAULT, seed: int = 0) -> Adapter:
        """Put an adapter into the network; the first one is active then, others are not until they are activated.

        Raises:
            UserError: a target that matches nothing, or what the network has not or cannot adapt; or the name is taken.
        """
        if not name or "." in name:
            raise UserError(f"adapter name {name!r}: expected a name without dots.")
        if name in self._adapters:
            raise UserError(f"adapter {name}: there is one of this name already; delete it first, or name another.")
        places = {leaf.name: leaf for leaf in leaves(self._model)}
        saved, targets, biased = _chosen(places, config)
        versions: dict[str, Update | EmbeddingUpdate | TrainableCopy] = {}
        for module, place in places.items():
            base = place.module.base if isinstance(place.module, Adapted) else place.module
            if module in targets:
                versions[module] = _update(base, config, module, seed, module in biased)
            elif module in saved or module in biased:
                versions[module] = TrainableCopy(base, module in saved)
        for module, version in versions.items():
            self._adapted(places[module]).versions[name] = version
        self._adapters[name] = Adapter(name, config, versions)
        if len(self._adapters) == 1:
            self._choice.active = (name,)
        return self._adapters[name]

    def activate(self, *names: str) -> None:
        """From now on these adapters act, one after the other; with no name the base alone.

        Raises:
            UserError: no such adapter; or two of them that train the same bias or module whole.
        """
        self._check(names)
        wrong = []
        for place in leaves(self._model):
            versions = {n: place.module.versions[n] for n in names
                        if isinstance(place.module, Adapted) and n in place.module.versions}
            whole = [n for n, v in versions.items() if "weight" in v.trained]
            biases = [n for n, v in versions.items() if "bias" in v.trained]
            if len(biases) > 1 or (whole and len(versions) > 1):
                wrong.append(f"{place.name}: has parameters of its own in {', '.join(versions)}")
        if wrong:
            raise UserError("These adapters cannot act together:\n  " + listing(wrong))
        self._choice.active = tuple(names)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the base alone computes."""
        with self.only():
            yield

    @contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Within the block these adapters act, and on all rows."""
        self._check(names)
        labels, self._model.row_labels = self._model.row_labels, None
        try:
            with self._choice.only(*names):
                yield
        finally:
            self._model.row_labels = labels

    @contextmanager
    def by_row(self, labels: Sequence[str | None]) -> Iterator[None]:
        """Within the block each row of a run has the adapter of its label, or none; a run is of as many rows.

        Rows see keys and values of other rows, so a prefix and its branches must have the same label. A gradient has to
        be asked for within the block where activations are computed again.

        Raises:
            UserError: no such adapter.
        """
        self._check([label for label in dict.fromkeys(labels) if label is not None])
        before = self._choice.labels
        self._choice.labels = self._model.row_labels = RowLabels(labels)
        try:
            yield
        finally:
            self._choice.labels = self._model.row_labels = before

    def delete(self, name: str) -> None:
        """Take an adapter out of the network; a module that no other one has is the base's own again.

        Raises:
            UserError: no such adapter.
        """
        self._check([name])
        adapter = self._adapters.pop(name)
        self.unmerge()
        self._choice.active = tuple(n for n in self._choice.active if n != name)
        for place in list(leaves(self._model)):
            if place.name in adapter.versions:
                del place.module.versions[name]
                if not place.module.versions:
                    setattr(place.holder, place.attribute, place.module.base)

    def merge(self) -> None:
        """Fold the updates of the adapters that act into weights; they compute with these until `unmerge`."""
        for layer in self._foldable():
            layer.merge()

    def unmerge(self) -> None:
        """Compute with the frozen weights and the updates beside them again."""
        for layer in self._foldable():
            layer.unmerge()

    def _foldable(self) -> list[LoraLinear | LoraEmbedding]:
        return [place.module for place in leaves(self._model) if isinstance(place.module, (LoraLinear, LoraEmbedding))]

    def _adapted(self, place: Leaf) -> Adapted:
        """The module that holds versions in this place, put there if there is none."""
        if isinstance(place.module, Adapted):
            return place.module
        kind = next((made for base, made in _KINDS.items() if isinstance(place.module, base)), Adapted)
        made = kind(place.module, self._choice, place.name)
        setattr(place.holder, place.attribute, made)
        return made

    def _check(self, names: Sequence[Hashable]) -> None:
        unknown = [str(name) for name in names if name not in self._adapters]
        if unknown:
            raise UserError(f"adapter {', '.join(unknown)}: there is none of this name; there are "
                            f"{', '.join(self._adapters) or 'none'}.")


_KINDS = {Linear: LoraLinear, Embedding: LoraEmbedding}


def adapters_of(model: CausalLM) -> Adapters:
    """The adapters of this network; none at first."""
    if not hasattr(model, "adapters"):
        model.adapters = Adapters(model)
    return model.adapters


def inject(model: CausalLM, config: LoraConfig, seed: int = 0, name: str = DEFAULT) -> Adapter:
    """`Adapters.add` for this network."""
    return adapters_of(model).add(config, name, seed)


def trained_shapes(model: CausalLM, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of `Adapter.parameters` of an adapter with these settings, without making it.

    Raises:
        UserError: as `Adapters.add`.
    """
    places = {leaf.name: leaf for leaf in leaves(model)}
    saved, targets, biased = _chosen(places, config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, place in places.items():
        base = place.module.base if isinstance(place.module, Adapted) else place.module
        rows, columns = base.weight.shape[0], base.weight.shape[-1]
        if name in targets:
            table, rank = isinstance(base, Embedding), config.rank_of(name)
            a, b = (rank, rows if table else columns), (columns if table else rows, rank)
            kind = "lora_embedding_" if table else "lora_"
            shapes.update({f"{name}.{kind}A": a, f"{name}.{kind}B": b})
            if config.use_dora:
                shapes[f"{name}.lora_magnitude_vector"] = b[:1]
        elif name in saved:
            shapes[f"{name}.weight"] = tuple(base.weight.shape)
        if name in biased or (name in saved and getattr(base, "bias", None) is not None):
            shapes[f"{name}.bias"] = (rows,)
    return shapes


def check_fit(shapes: Mapping[str, Sequence[int]], arrays: Mapping[str, np.ndarray]) -> None:
    """
    Raises:
        UserError: an array is missing, unexpected or misshapen; all are listed.
    """
    missing = [f"{name}: missing" for name in shapes if name not in arrays]
    unknown = [f"{name}: no such module is adapted" for name in arrays if name not in shapes]
    misshapen = [f"{name}: expected shape {tuple(shape)}, found {tuple(arrays[name].shape)}"
                 for name, shape in shapes.items() if name in arrays and tuple(shape) != tuple(arrays[name].shape)]
    if missing or unknown or misshapen:
        wrong = "\n  ".join(some_of_each(missing, unknown, misshapen))
        raise UserError(f"The adapter does not fit the model:\n  {wrong}\n"
                        "Load it with the base model and the target modules it was trained with.")


def _update(base: jt.Module, config: LoraConfig, name: str, seed: int, with_bias: bool) -> Update | EmbeddingUpdate:
    if isinstance(base, Embedding):
        return EmbeddingUpdate(base, config, name, seed)
    return Update(base, config, name, seed, with_bias)


def _chosen(places: Mapping[str, Leaf], config: LoraConfig) -> tuple[set[str], set[str], set[str]]:
    """The modules that are trained whole, those that get an update, and those of which the bias is trained."""
    bases = {name: place.module.base if isinstance(place.module, Adapted) else place.module
             for name, place in places.items()}
    saved = match_saved(list(places), config.modules_to_save) if config.modules_to_save else []
    linear = [name for name, module in bases.items() if isinstance(module, Linear)]
    targets = match_targets([name for name, module in bases.items() if isinstance(module, (Linear, Embedding))], config,
                            linear)
    wrong = []
    if config.qv_only and not any(is_fused_qkv(name) for name in targets):
        wrong.append("qv_only: expected the fused projection c_attn (GPT-2) among the target modules, found "
                     f"{', '.join(short_names(targets))}. Name q_proj and v_proj as target modules instead.")
    tables = [name for name in targets if isinstance(bases[name], Embedding)]
    if tables and config.changes_base:
        wrong.append(f"init: {config.init} is for linear layers, and {', '.join(tables)} is an embedding.")
    biased = {name for name, module in bases.items() if getattr(module, "bias", None) is not None
              and (config.bias == "all" or (config.bias == "lora_only" and name in targets))}
    if config.bias != "none" and not biased:
        wrong.append(f"bias: {config.bias}, but what it is about has no biases in this base.")
    if wrong:
        raise UserError("\n".join(wrong))
    return set(saved), set(targets), biased


def set_arrays(arrays: Mapping[str, jt.Var], values: Mapping[str, np.ndarray]) -> None:
    check_fit({name: array.shape for name, array in arrays.items()}, values)
    for name, array in arrays.items():
        value = jt.array(np.ascontiguousarray(values[name], np.float32))
        array.update(value.stop_grad() if array.is_stop_grad() else value)


def seed_of(*key: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence([k & 0xFFFFFFFFFFFFFFFF for k in key]).generate_state(1)[0]) >> 1


def listing(lines: list[str], most: int = 20) -> str:
    """The lines below each other, cut where there are too many to read."""
    rest = len(lines) - most
    return "\n  ".join(lines[:most] + ([f"… and {rest} more"] if rest > 0 else []))
