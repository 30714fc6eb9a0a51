"""A linear layer with a low-rank update beside its frozen weight."""

from __future__ import annotations

import zlib

import numpy as np

from jittor_lora import ops
from jittor_lora.lora.config import LoraConfig
from jittor_lora.model.modules import Linear
from jittor_lora.ops import Matrix, frozen
from jittor_lora.runtime import jt


class LoraLinear(jt.Module):
    """base(x) + scaling · dropout(x) Aᵀ Bᵀ, Hu et al. 2021, eq. 3.

    Args:
        base: the frozen layer, which this one takes the place of.
        config: rank, scaling, dropout, start.
        name: the layer's name in the network; with `seed` it decides A's start, whatever else is adapted.
        seed: of A's start.

    Attributes:
        lora_A: (r, in), float32, trained.
        lora_B: (out, r), float32, trained, zero at the start.
        dropout_seed: which dropout mask the next run uses; None (always outside training): none.
        enabled: False lets the base layer speak alone.
    """

    def __init__(self, base: Linear, config: LoraConfig, name: str, seed: int = 0):
        super().__init__()
        self.base, self.config, self.name = base, config, name
        self.lora_A = jt.array(initial_a(config, base.in_features, name, seed))
        self.lora_B = jt.zeros((base.out_features, config.r))
        self.dropout_seed: int | None = None
        self.enabled = True
        self._unmerged = None
        self._b_rows = frozen(trained_rows(base.out_features)) if config.qv_only and is_fused_qkv(name) else None

    def execute(self, x):
        if not self.enabled:
            return ops.linear(x, self.base.weight if self._unmerged is None else self._unmerged, self.base.bias)
        if self.merged:
            return self.base(x)
        b = self.lora_B if self._b_rows is None else self.lora_B * self._b_rows
        return ops.lora_linear(x, self.base.weight, self.base.bias, self.lora_A, b, self.config.scaling,
                               self.config.dropout, self.dropout_seed)

    def acting(self):
        """What it computes with as it is now: weight, bias, and the update beside them, which is A (r, in) and
        scaling · B (out, r) as numpy arrays, or None."""
        if not self.enabled:
            return self.base.weight if self._unmerged is None else self._unmerged, self.base.bias, None
        if self.merged:
            return self.base.acting()
        return self.base.weight, self.base.bias, (self.lora_A.numpy(), self.effective_b() * self.config.scaling)

    @property
    def merged(self) -> bool:
        return self._unmerged is not None

    def effective_b(self) -> np.ndarray:
        """B (out, r) as it acts: with `qv_only`, zero in the rows of the keys."""
        b = self.lora_B.numpy()
        return b if self._b_rows is None else b * self._b_rows.numpy()

    def merged_weight(self) -> np.ndarray:
        """W + scaling · B A in float32, (out, in)."""
        weight = self.base.weight if self._unmerged is None else self._unmerged
        return weight.numpy() + np.float32(self.config.scaling) * (self.effective_b() @ self.lora_A.numpy())

    def merge(self) -> None:
        """Fold the update into the base layer's weight; the weight it had is kept for `unmerge`."""
        if not self.merged:
            merged = Matrix.of(self.merged_weight(), self.base.weight.precision)
            self._unmerged, self.base.weight = self.base.weight, merged

    def unmerge(self) -> None:
        """Give the base layer the very weight it had before `merge`."""
        if self.merged:
            self.base.weight, self._unmerged = self._unmerged, None


def initial_a(config: LoraConfig, in_features: int, name: str, seed: int) -> np.ndarray:
    """A (r, in) at the start of training; a pure function of the arguments."""
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))
    shape = (config.r, in_features)
    if config.init == "gaussian":
        return (draw.standard_normal(shape) / config.r).astype(np.float32)
    # kaiming_uniform with a = √5, as PEFT starts A: the bound is √(6 / ((1 + 5) · in)).
    bound = in_features**-0.5
    return draw.uniform(-bound, bound, shape).astype(np.float32)


def is_fused_qkv(name: str) -> bool:
    return name.rsplit(".", 1)[-1] == "c_attn"


def trained_rows(out_features: int) -> np.ndarray:
    """(out, 1): 1 for the rows of the queries and values of a fused projection, 0 for those of the keys."""
    rows = np.ones((out_features, 1), np.float32)
    third = out_features // 3
    rows[third : 2 * third] = 0.0
    return rows
