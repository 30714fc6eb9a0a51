"""A linear layer with low-rank updates beside its frozen weight."""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.errors import UserError
from jittor_lora.lora.adapted import Adapted, Choice, names_of
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.init import initial_pair
from jittor_lora.model.modules import Linear
from jittor_lora.ops import Matrix, TrainedMatrix, frozen
from jittor_lora.system.runtime import jt


class Update(jt.Module):
    """What one adapter adds to one linear layer: Δ x = scaling · dropout(x) Aᵀ Bᵀ (Hu et al. 2021, eq. 3).

    A start that takes a part out of W (PiSSA, OLoRA) leaves W itself alone: its A and B at the start, A₀ and B₀, stay
    beside the trained ones, and x (W - scaling · B₀ A₀)ᵀ is computed as x Wᵀ - scaling · x A₀ᵀ B₀ᵀ.

    With DoRA (Liu et al. 2024, eq. 5) the layer's product x Wᵀ + Δ x is multiplied by m / ‖W + scaling · B A‖, lengths
    of the rows, one an output. The length is no part of the gradient (section 4.3). With dropout, as in PEFT,
    y = x Wᵀ + (m / ‖…‖ - 1) · dropout(x) Wᵀ + m / ‖…‖ · scaling · dropout(x) Aᵀ Bᵀ.

    Args:
        base: the frozen layer.
        config: rank, scaling, dropout, start.
        name: the layer's name in the network; with `seed` it decides what is drawn at the start.
        seed: of the start.
        with_bias: train the layer's bias.

    Attributes:
        lora_A: (r, in), float32, trained.
        lora_B: (out, r), float32, trained.
        magnitude: m (out,), trained, with DoRA; else None. The row lengths of W at the start.
        bias: (out,), trained, or None.
        initial: A₀ and B₀, or None.
        dropout_seed: which dropout mask the next run uses; None (always outside training): none.
        dropout_rows: number of rows of an input → the row of the mask that its first one takes, if that is not row 0.
    """

    def __init__(self, base: Linear, config: LoraConfig, name: str, seed: int = 0, with_bias: bool = False):
        super().__init__()
        self.scaling, self.dropout = config.scaling_of(name), config.dropout
        a, b = initial_pair(config, name, seed, base.weight.shape, lambda: base.weight.numpy())
        self.lora_A, self.lora_B = jt.array(a), jt.array(b)
        self.magnitude = jt.array(np.linalg.norm(base.weight.numpy(), axis=1)) if config.use_dora else None
        self.bias = jt.array(base.bias.numpy().copy()) if with_bias and base.bias is not None else None
        self.dropout_seed: int | None = None
        self.dropout_rows: Mapping[int, int] = {}
        rows = trained_rows(base.out_features) if config.qv_only and is_fused_qkv(name) else None
        self._b_rows = None if rows is None else frozen(rows)
        self.initial = (frozen(a), frozen(b if rows is None else b * rows)) if config.changes_base else None

    @property
    def trained(self) -> dict[str, jt.Var]:
        arrays = {"lora_A": self.lora_A, "lora_B": self.lora_B, "lora_magnitude_vector": self.magnitude,
                  "bias": self.bias}
        return {name: array for name, array in arrays.items() if array is not None}

    def alone(self, x, weight, bias):
        """What the layer computes with this update and no other: (N, out)."""
        if self.magnitude is None:
            return self._beside(x, weight, bias)
        y = self._scaled(x, weight)
        return y if bias is None else y + bias

    def onto(self, y, x, weight):
        """y (N, out), a sum of products without bias, with this update applied to it."""
        if self.magnitude is None:
            return y + self._low_rank(x)
        scale = self._scale(weight)
        if not self._drops:
            return (y + self._low_rank(x)) * scale
        seen = self._dropped(x)
        if self.initial is not None:  # what was taken out of W sees all of x; `_low_rank` takes it out of what is seen
            y = y - ops.low_rank(x - seen, *self.initial, self.scaling)
        return y + ops.linear(seen, weight) * (scale - 1.0) + self._low_rank(seen, dropped=True) * scale

    def within(self, var, weight):
        """`var` (out, in), a weight, with this update applied to it; it takes the gradient."""
        if self._drops:
            raise UserError("lora_dropout: expected 0 where the output head is adapted, as its logits are computed "
                            f"from one matrix; found {self.dropout:g}.")
        a, b = self._both()
        var = var + self.scaling * jt.matmul(b, a)
        return var if self.magnitude is None else var * self._scale(weight).unsqueeze(1)

    def _beside(self, x, weight, bias):
        a, b = self.lora_A, self._b()
        if self.initial is None:
            return ops.lora_linear(x, weight, bias, a, b, self.scaling, self.dropout, *self._mask(x))
        if self._drops:  # what was taken out of W sees all of x
            y = ops.lora_linear(x, weight, bias, a, b, self.scaling, self.dropout, *self._mask(x))
            return y - ops.low_rank(x, *self.initial, self.scaling)
        return ops.lora_linear(x, weight, bias, *self._both(), self.scaling)

    def _scaled(self, x, weight):
        scale = self._scale(weight)
        if not self._drops:
            return ops.lora_linear(x, weight, None, *self._both(), self.scaling) * scale
        seen = self._dropped(x)
        y = ops.linear(x - seen, weight)
        if self.initial is not None:
            y = y - ops.low_rank(x - seen, *self.initial, self.scaling)
        return y + ops.lora_linear(seen, weight, None, *self._both(), self.scaling) * scale

    def _low_rank(self, x, dropped: bool = False):
        y = ops.low_rank(x, self.lora_A, self._b(), self.scaling, 0.0 if dropped else self.dropout, *self._mask(x))
        return y if self.initial is None else y - ops.low_rank(x, *self.initial, self.scaling)

    def _scale(self, weight):
        """m / ‖W + scaling · (B A - B₀ A₀)‖, (out,). Of the squared length ‖W‖² is known; the rest has rank 2r."""
        a, b = (array.detach() for array in self._both())
        cross = ops.linear(a, weight).transpose()  # W Aᵀ, (out, r)
        gram = jt.nn.matmul_transpose(a, a)
        squares = weight.squares(1) + self.scaling * (b * (2.0 * cross + self.scaling * jt.matmul(b, gram))).sum(1)
        return self.magnitude / jt.sqrt(squares).detach()

    def _b(self):
        return self.lora_B if self._b_rows is None else self.lora_B * self._b_rows

    def _both(self):
        """A (and A₀) below each other, B (and -B₀) beside each other: their product is B A - B₀ A₀."""
        if self.initial is None:
            return self.lora_A, self._b()
        a, b = self.initial
        return jt.concat([self.lora_A, a], 0), jt.concat([self._b(), -b], 1)

    @property
    def _drops(self) -> bool:
        return self.dropout > 0.0 and self.dropout_seed is not None

    def _dropped(self, x):
        return x * ops.dropout_mask(x.shape[0], x.shape[1], self.dropout, *self._mask(x))

    def _mask(self, x) -> tuple[int | None, int]:
        return self.dropout_seed, self.dropout_rows.get(x.shape[0], 0)

    # --- as numpy arrays ---

    def effective_b(self) -> np.ndarray:
        """B (out, r) as it acts: with `qv_only`, zero in the rows of the keys."""
        b = self.lora_B.numpy()
        return b if self._b_rows is None else b * self._b_rows.numpy()

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """A (R, in) and scaling · B (out, R) with everything that is beside W: R is r, or 2 r with A₀ and B₀."""
        a, b = self.lora_A.numpy(), self.effective_b()
        if self.initial is not None:
            a, b = np.concatenate([a, self.initial[0].numpy()]), np.concatenate([b, -self.initial[1].numpy()], 1)
        return a, b * np.float32(self.scaling)

    def applied(self, weight: np.ndarray, base: np.ndarray) -> np.ndarray:
        """`weight` (out, in) with this update in it. base: the frozen weight, of which DoRA takes the lengths."""
        a, b = self.factors()
        update = b @ a
        if self.magnitude is None:
            return weight + update
        lengths = np.linalg.norm(base + update, axis=1)
        return (weight + update) * (self.magnitude.numpy() / lengths)[:, None]


class LoraLinear(Adapted):
    """A linear layer with the updates of the adapters that act; see `Update`.

    Several are applied one after the other as PEFT does: a plain one adds to what was before, one with DoRA also scales
    that. `merge` folds those that act into the weight.
    """

    def __init__(self, base: Linear, choice: Choice, name: str):
        super().__init__(base, choice, name)
        self._merged: tuple[tuple[str, ...], Matrix] | None = None

    def run(self, x, names: Sequence[str]):
        weight, bias, updates = self._parts(names)
        if not updates:
            return ops.linear(x, weight, bias)
        if len(updates) == 1:
            return updates[0].alone(x, weight, bias)
        y = updates[0].alone(x, weight, None)
        for update in updates[1:]:
            y = update.onto(y, x, weight)
        return y if bias is None else y + bias

    def acting(self):
        """What it computes with as it is now: weight, bias, and the update beside them, which is A (r, in) and
        scaling · B (out, r) as numpy arrays, or None. A weight that DoRA scales is made anew, updates in it."""
        weight, bias, updates = self._parts(self.choice.active)
        if not updates:
            return weight, bias, None
        if any(update.magnitude is not None for update in updates):
            return Matrix.of(self.effective_weight(), weight.precision), bias, None
        a, b = zip(*(update.factors() for update in updates))
        return weight, bias, (np.concatenate(a), np.concatenate(b, 1))

    def matrix(self, label: str | None = None):
        """All that a row x is multiplied with, the updates in it, for the output head, whose logits are never held.

        Args:
            label: of the row, where rows differ.

        Raises:
            UserError: an update drops a part of its input, which no matrix does.
        """
        weight, _, updates = self._parts(self.choice.active if self.choice.labels is None else names_of(label))
        if not updates:
            return weight
        var = weight.var
        for update in updates:
            var = update.within(var, weight)
        return TrainedMatrix(var, weight.precision)

    def _parts(self, names: Sequence[str]):
        """The weight, the bias, and the updates that are not in the weight."""
        module, acting = self.module(names), self.acting_versions(names)
        updates = [version for version in acting if isinstance(version, Update)]
        bias = next((update.bias for update in updates if update.bias is not None), module.bias)
        if self._merged is not None and self._merged[0] == tuple(names):
            return self._merged[1], bias, []
        return module.weight, bias, updates

    @property
    def merged(self) -> bool:
        return self._merged is not None

    def effective_weight(self) -> np.ndarray:
        """(out, in) float32 with the updates of the adapters that act in it."""
        module = self.module()
        base = weight = module.weight.numpy()
        for update in self.acting_versions():
            if isinstance(update, Update):
                weight = update.applied(weight, base)
        return weight

    def effective_bias(self) -> np.ndarray:
        return self._parts(self.choice.active)[1].numpy()

    def merge(self) -> None:
        """Fold the updates that act into a weight that takes the frozen one's place while these adapters act."""
        self._merged = self.choice.active, Matrix.of(self.effective_weight(), self.base.weight.precision)

    def unmerge(self) -> None:
        """Compute with the frozen weight again, which was left as it is."""
        self._merged = None


def is_fused_qkv(name: str) -> bool:
    return name.rsplit(".", 1)[-1] == "c_attn"


def trained_rows(out_features: int) -> np.ndarray:
    """(out, 1): 1 for the rows of the queries and values of a fused projection, 0 for those of the keys."""
    rows = np.ones((out_features, 1), np.float32)
    third = out_features // 3
    rows[third : 2 * third] = 0.0
    return rows
