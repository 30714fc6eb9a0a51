"""Layers of any Jittor module, with the updates of adapters: linear layers and embeddings, by the classes that adapt
our own networks, and whatever is trained whole."""

from __future__ import annotations

import zlib
from typing import Sequence

from jittor_lora.lora.adapted import AdaptedModule
from jittor_lora.lora.adapter import mixed_seed
from jittor_lora.lora.embedding import EmbeddingUpdate, LoraEmbedding
from jittor_lora.lora.layer import LoraLinear, Update
from jittor_lora.ops import TrainedMatrix, frozen
from jittor_lora.system.runtime import jt


class AdaptedLayer(AdaptedModule):
    """An adapted layer that is called as the layer itself is.

    In training mode (`train()`, Jittor's default) the dropout masks of a pass are a pure function of the adapter's
    seed, its name, the layer's name and the number of the pass; in evaluation mode (`eval()`) there is no dropout.
    """

    passes = 0  # of this layer in training mode

    def execute(self, *args, **kwargs):
        self.begin_pass()
        return self.run(*args, names=self.active.names, **kwargs)

    def begin_pass(self) -> None:
        """Freeze again what Jittor may have unfrozen, and choose the dropout masks."""
        self.active.freeze()
        mode = getattr(self, "is_train", None)  # which Jittor does not set in lists
        training = self.active.network.is_training() if mode is None else mode
        self.passes += training
        for name in self.active.names:
            version = self.versions.get(name)
            if isinstance(version, Update) and version.dropout > 0.0:
                key = self.passes, version.seed, zlib.crc32(f"{name} {self.name}".encode())
                version.dropout_seed = mixed_seed(*key) if training else None

    def updates(self, names: Sequence[str]) -> list[jt.Module]:
        """The low-rank updates of these adapters."""
        return [version for version in self.versions_of(names) if isinstance(version, (Update, EmbeddingUpdate))]

    def is_plain(self, names: Sequence[str]) -> bool:
        """Does the layer compute what a frozen or trained layer of its own class does?"""
        return not self.updates(names)

    def dfs(self, parents, key, callback, callback_leave=None, recurse=True):
        self.active.may_be_unfrozen = True  # train() and eval() begin so
        super().dfs(parents, key, callback, callback_leave, recurse)

    def __getattr__(self, key):
        """An adapter's version by its name, as Jittor's `load` finds it; else what the layer itself has."""
        own = self.__dict__
        if key in own.get("versions", ()):
            return own["versions"][key]
        if "base" in own and not key.startswith("__"):
            return getattr(own["base"], key)
        raise AttributeError(key)


class Saved(AdaptedLayer):
    """A module of any class that adapters train whole."""

    def execute(self, *args, **kwargs):
        self.begin_pass()
        return self.module()(*args, **kwargs)


class AnyLinear(AdaptedLayer, LoraLinear):
    """`jt.nn.Linear` with the updates of the active adapters: (…, in) → (…, out)."""

    def run(self, x, names: Sequence[str], mask_start: int = 0):
        if self.is_plain(names):
            return self.module(names)(x)
        y = LoraLinear.run(self, x.reshape((-1, x.shape[-1])), names)
        return y.reshape((*x.shape[:-1], y.shape[-1]))

    def matrix(self, weight):
        return TrainedMatrix(weight)

    def as_matrix(self, array):
        return TrainedMatrix(frozen(array))


class IndexedUpdate(EmbeddingUpdate):
    """The update of `jt.nn.Embedding`, whose ids are an array of Jittor's. A row of `padding_idx` is not trained, as
    in PEFT."""

    def __init__(self, base: jt.nn.Embedding, *args):
        super().__init__(base, *args)
        self.padding = base.padding_idx

    def _rows(self, ids):
        rows = self.lora_A.transpose()[ids]
        if self.padding is None:
            return rows
        return jt.ternary((ids == self.padding).unsqueeze(1).broadcast(rows.shape), rows.detach(), rows)


class AnyEmbedding(AdaptedLayer, LoraEmbedding):
    """`jt.nn.Embedding` with the updates of the active adapters: ids (…) → (…, D)."""

    def run(self, x, names: Sequence[str], mask_start: int = 0):
        if self.is_plain(names):
            return self.module(names)(x)
        y = LoraEmbedding.run(self, x.reshape((-1,)), names)
        return y.reshape((*x.shape, y.shape[-1]))

    def matrix(self, weight):
        return TrainedMatrix(weight)

    def as_matrix(self, array):
        return TrainedMatrix(frozen(array))
