"""Jittor's `MultiheadAttention` with low-rank updates of its projections."""

from __future__ import annotations

import sys
from typing import Iterator, Mapping, Sequence

import numpy as np

from jittor_lora.lora.adapted import MergeableModule, shallow_copy, trained_arrays
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.init import random_pair
from jittor_lora.lora.layers import AdaptedLayer
from jittor_lora.ops import frozen
from jittor_lora.system.runtime import jt

OUT = "out_proj"


def projections(attention: jt.Module) -> dict[str, jt.Var]:
    """The weights (out, in) by the beginning of the names of their updates: in_proj_weight, of queries, keys and values
    side by side, has none, as in PEFT; keys and values of other widths have their own weights."""
    if attention.in_proj_weight is not None:
        ins = {"": attention.in_proj_weight}
    else:
        ins = {f"{letter}_proj.": getattr(attention, f"{letter}_proj_weight") for letter in "qkv"}
    return {**ins, f"{OUT}.": attention.out_proj.weight}


class AttentionUpdate(jt.Module):
    """What one adapter adds to the weights of an attention's projections, scaling · B A each. All are updated, as in
    PEFT, with one rank; as the update is of weights, there is no dropout.

    Attributes:
        trained: "lora_A" (r, in) and "lora_B" (out, r) of each, see `projections`.
    """

    def __init__(self, base: jt.Module, config: LoraConfig, name: str, seed: int = 0, with_bias: bool = False,
                 values: Mapping[str, np.ndarray] | None = None):
        super().__init__()
        self.scaling = config.scaling_of(name)
        if config.dropout > 0.0:
            print(f"{name}: dropout does not apply to a MultiheadAttention, whose weights are updated as such; PEFT "
                  "ignores it there too.", file=sys.stderr)
        shapes = self.shapes(base, config, name)
        if values is None:
            values = {}
            for part, weight in projections(base).items():
                pair = random_pair(config.init, config.rank_of(name), f"{name}.{part}", seed, tuple(weight.shape))
                values.update(zip((f"{part}lora_A", f"{part}lora_B"), pair))
        self.trained = trained_arrays(values, list(shapes))
        for part, array in self.trained.items():
            setattr(self, part.replace(".", "_"), array)  # where Jittor finds parameters

    @staticmethod
    def shapes(base: jt.Module, config: LoraConfig, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the trained arrays, by their names in `trained`."""
        rank, shapes = config.rank_of(name), {}
        for part, weight in projections(base).items():
            shapes.update({f"{part}lora_A": (rank, weight.shape[1]), f"{part}lora_B": (weight.shape[0], rank)})
        return shapes

    @staticmethod
    def refusals(base: jt.Module, config: LoraConfig, name: str) -> Iterator[str]:
        """What the settings ask for that an attention cannot do."""
        asked = {"use_dora": config.use_dora, "lora_bias": config.lora_bias,
                 f"init: {config.init}": config.changes_base}
        for setting, used in asked.items():
            if used:
                yield f"{setting}: not supported for {name}, a MultiheadAttention."

    def change(self, part: str):
        """scaling · B A of a projection."""
        return self.scaling * jt.matmul(self.trained[f"{part}lora_B"], self.trained[f"{part}lora_A"])


class Attention(AdaptedLayer, MergeableModule):
    """`jt.nn.MultiheadAttention` with the updates of the active adapters."""

    def run(self, *args, names: Sequence[str], **kwargs):
        weights = self.merged(names)
        if weights is None:
            updates = self.updates(names)
            if not updates:
                return self.base(*args, **kwargs)
            weights = {part: weight + sum(update.change(part) for update in updates)
                       for part, weight in projections(self.base).items()}
        return _with_weights(self.base, weights)(*args, **kwargs)

    def updates(self, names: Sequence[str]) -> list[jt.Module]:
        return self.versions_of(names)

    def effective_weight(self) -> dict[str, np.ndarray]:
        """The weights with the active adapters merged in, see `projections`."""
        return {part: weight.numpy() + sum(update.change(part).numpy() for update in self.updates(self.active.names))
                for part, weight in projections(self.base).items()}

    def as_matrix(self, weights: Mapping[str, np.ndarray]) -> dict[str, jt.Var]:
        return {part: frozen(weight) for part, weight in weights.items()}


def _with_weights(base: jt.Module, weights: Mapping[str, jt.Var]) -> jt.Module:
    """A copy of an attention that computes with other weights."""
    attention = shallow_copy(base)
    for part, weight in weights.items():
        if part == f"{OUT}.":
            attention.out_proj = shallow_copy(base.out_proj)
            attention.out_proj.weight = weight
        else:
            setattr(attention, f"{part[0]}_proj_weight" if part else "in_proj_weight", weight)
    return attention
