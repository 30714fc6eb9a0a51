"""A linear layer with low-rank updates beside its frozen weight."""

from __future__ import annotations

from typing import Iterator, Mapping, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.errors import UserError
from jittor_lora.lora.adapted import MergeableModule, trained_arrays
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.init import initial_pair
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.modules import Linear
from jittor_lora.ops import Matrix, TrainedMatrix, frozen
from jittor_lora.system.runtime import jt


class Update(jt.Module):
    """What one adapter adds to one linear layer: Δ x = scaling · dropout(x) Aᵀ Bᵀ (Hu et al. 2021, eq. 3).

    PiSSA and OLoRA subtract scaling · B A at initialisation from W. Here W itself stays as it is: the initial A and B,
    A₀ and B₀, are kept beside the trained ones, and x (W - scaling · B₀ A₀)ᵀ is computed as
    x Wᵀ - scaling · x A₀ᵀ B₀ᵀ.

    With DoRA (Liu et al. 2024, eq. 5) the product x Wᵀ + Δ x is multiplied by m / ‖W + scaling · B A‖, where the norm
    is that of each row, one per output. No gradient flows through the norm (section 4.3). With dropout, as in PEFT,
    y = x Wᵀ + (m / ‖…‖ - 1) · dropout(x) Wᵀ + m / ‖…‖ · scaling · dropout(x) Aᵀ Bᵀ.

    Args:
        base: the frozen layer.
        config: rank, scaling, dropout, initialisation.
        name: of the module; together with `seed` it determines the random initialisation.
        with_bias: train the layer's bias.
        values: the trained arrays, by the names in `trained`; by default they are initialised.

    Attributes:
        lora_A: (r, in), float32, trained.
        lora_B: (out, r), float32, trained.
        magnitude: m (out,), trained, with DoRA; else None. Initialised to the norms of the rows of W.
        bias: (out,), trained, or None.
        b_bias: b (out,) of scaling · (B A x + b), trained, or None; initialised to zero.
        initial: A₀ and B₀, or None.
        dropout_seed: of the dropout masks; None for no dropout, as always outside training.
    """

    def __init__(self, base: Linear, config: LoraConfig, name: str, seed: int = 0, with_bias: bool = False,
                 values: Mapping[str, np.ndarray] | None = None):
        super().__init__()
        self.scaling, self.dropout, self.seed = config.scaling_of(name), config.dropout, seed
        self.dropout_seed: int | None = None
        out_features = base.weight.shape[0]
        b_rows = trained_rows(out_features) if config.qv_only and is_fused_qkv(name) else None
        self._b_rows = None if b_rows is None else frozen(b_rows)
        self.initial = None
        if values is None or config.changes_base:
            a, b = self._initial_pair(base, config, name, seed)
            if config.changes_base:
                self.initial = frozen(a), frozen(b if b_rows is None else b * b_rows)
        if values is None:
            values = {"lora_A": a, "lora_B": b}
            if config.use_dora:
                values["lora_magnitude_vector"] = self._row_norms(base.weight.numpy())
            if config.lora_bias:
                values["lora_B_bias"] = np.zeros(out_features, np.float32)
            if with_bias and base.bias is not None:
                values["bias"] = base.bias.numpy().copy()
        self.trained = trained_arrays(values, ("lora_A", "lora_B", "lora_magnitude_vector", "lora_B_bias", "bias"))
        self.lora_A, self.lora_B = self.trained["lora_A"], self.trained["lora_B"]
        self.magnitude, self.bias = self.trained.get("lora_magnitude_vector"), self.trained.get("bias")
        self.b_bias = self.trained.get("lora_B_bias")

    @staticmethod
    def shapes(base: Linear, config: LoraConfig, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the trained arrays but the bias, by their names in `trained`."""
        (rows, columns), rank = base.weight.shape, config.rank_of(name)
        shapes = {"lora_A": (rank, columns), "lora_B": (rows, rank)}
        if config.use_dora:
            shapes["lora_magnitude_vector"] = (rows,)
        if config.lora_bias:
            shapes["lora_B_bias"] = (rows,)
        return shapes

    @staticmethod
    def refusals(base: Linear, config: LoraConfig, name: str) -> Iterator[str]:
        """What the settings ask for that this layer cannot do."""
        if name == OUTPUT_HEAD and isinstance(base, Linear) and config.lora_bias:
            yield f"lora_bias: not supported for {name}."

    def _initial_pair(self, base: Linear, config: LoraConfig, name: str, seed: int):
        return initial_pair(config, name, seed, tuple(base.weight.shape), lambda: base.weight.numpy())

    @staticmethod
    def _row_norms(weight: np.ndarray) -> np.ndarray:
        return np.linalg.norm(weight, axis=1)

    # --- in the network: x is (N, in), weight the frozen W; mask_start is the row of the dropout mask for x's first ---

    def output(self, x, weight, bias, mask_start: int = 0):
        """The layer's output with this update alone: (N, out)."""
        if self.magnitude is None:
            return self._plain_output(x, weight, bias, mask_start)
        y = self._dora_output(x, weight, mask_start)
        return y if bias is None else y + bias

    def apply_to_output(self, y, x, weight, mask_start: int = 0):
        """y (N, out), the layer's output without bias, with this update applied."""
        if self.magnitude is None:
            return y + self._low_rank(x, mask_start)
        scale = self._scale(weight)
        if not self._drops:
            return (y + self._low_rank(x, mask_start)) * scale
        seen = self._dropped(x, mask_start)
        if self.initial is not None:  # B₀ A₀ is subtracted for all of x, and `_low_rank` does so for what is seen
            y = y - ops.low_rank(x - seen, *self.initial, self.scaling)
        return y + self._through(seen, weight) * (scale - 1.0) + self._low_rank(seen, None) * scale

    def apply_to_weight(self, w, weight):
        """w (out, in) with this update applied, as part of the graph of gradients.

        Raises:
            UserError: dropout is on, which acts on an input, not on a weight.
        """
        if self._drops:
            raise UserError("lora_dropout: expected 0 where the output head is adapted, as its logits are computed "
                            f"from one matrix; found {self.dropout:g}.")
        a, b = self._both()
        w = w + self.scaling * jt.matmul(b, a)
        return w if self.magnitude is None else w * self._scale(weight).unsqueeze(1)

    def _plain_output(self, x, weight, bias, mask_start):
        if self.initial is not None and not self._drops:
            return ops.lora_linear(x, weight, bias, *self._both(), self.scaling)
        y = ops.lora_linear(x, weight, bias, self.lora_A, self._b(), self.scaling, self.dropout, self.dropout_seed,
                            mask_start)
        # B₀ A₀ is subtracted for all of x.
        return y if self.initial is None else y - ops.low_rank(x, *self.initial, self.scaling)

    def _dora_output(self, x, weight, mask_start):
        scale = self._scale(weight)
        if not self._drops:
            return ops.lora_linear(x, weight, None, *self._both(), self.scaling) * scale
        seen = self._dropped(x, mask_start)
        y = ops.linear(x - seen, weight)
        if self.initial is not None:
            y = y - ops.low_rank(x - seen, *self.initial, self.scaling)
        return y + ops.lora_linear(seen, weight, None, *self._both(), self.scaling) * scale

    def _through(self, x, weight):
        return ops.linear(x, weight)

    def _low_rank(self, x, mask_start: int | None):
        """Δ x, and x (-B₀ A₀)ᵀ; with None for `mask_start` x is dropped out already."""
        dropout = (0.0,) if mask_start is None else (self.dropout, self.dropout_seed, mask_start)
        y = ops.low_rank(x, self.lora_A, self._b(), self.scaling, *dropout)
        return y if self.initial is None else y - ops.low_rank(x, *self.initial, self.scaling)

    def _scale(self, weight):
        """m / ‖W + scaling · (B A - B₀ A₀)‖, (out,). Of the squared norm, ‖W‖² is known; the rest has rank 2r."""
        a, b = (array.detach() for array in self._both())
        cross = ops.linear(a, weight).transpose()  # W Aᵀ, (out, r)
        gram = jt.nn.matmul_transpose(a, a)
        squares = weight.squares(1) + self.scaling * (b * (2.0 * cross + self.scaling * jt.matmul(b, gram))).sum(1)
        return self.magnitude / jt.sqrt(squares).detach()

    def _b(self):
        return self.lora_B if self._b_rows is None else self.lora_B * self._b_rows

    def _both(self):
        """[A; A₀] and [B, -B₀], whose product is B A - B₀ A₀; A and B alone without A₀ and B₀."""
        if self.initial is None:
            return self.lora_A, self._b()
        a, b = self.initial
        return jt.concat([self.lora_A, a], 0), jt.concat([self._b(), -b], 1)

    @property
    def _drops(self) -> bool:
        return self.dropout > 0.0 and self.dropout_seed is not None

    def _dropped(self, x, mask_start):
        return x * ops.dropout_mask(x.shape[0], x.shape[1], self.dropout, self.dropout_seed, mask_start)

    # --- as numpy arrays ---

    def effective_b(self) -> np.ndarray:
        """B (out, r) as the layer uses it: with `qv_only`, zero in the rows of the keys."""
        b = self.lora_B.numpy()
        return b if self._b_rows is None else b * self._b_rows.numpy()

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """A (R, in) and scaling · B (out, R) of all that is added to W: R is r, or 2 r with A₀ and B₀."""
        a, b = self.lora_A.numpy(), self.effective_b()
        if self.initial is not None:
            a, b = np.concatenate([a, self.initial[0].numpy()]), np.concatenate([b, -self.initial[1].numpy()], 1)
        return a, b * np.float32(self.scaling)

    def merged(self, weight: np.ndarray, base: np.ndarray) -> np.ndarray:
        """`weight` (out, in) with this update merged in. base: the frozen weight, whose row norms DoRA uses."""
        return self._merged_rows(weight, base, None if self.magnitude is None else self.magnitude.numpy())

    def _merged_rows(self, weight: np.ndarray, base: np.ndarray, magnitude: np.ndarray | None) -> np.ndarray:
        a, b = self.factors()
        update = b @ a
        if magnitude is None:
            return weight + update
        norms = np.linalg.norm(base + update, axis=1)
        return (weight + update) * (magnitude / norms)[:, None]


class LoraLayer(MergeableModule):
    """A layer with a weight and a bias, and the updates of the active adapters, see `Update`."""

    def _parts(self, names: Sequence[str]):
        """The weight, the bias, and the updates that are not merged into the weight."""
        module = self.module(names)
        updates = [version for version in self.versions_of(names) if isinstance(version, Update)]
        bias = next((update.bias for update in updates if update.bias is not None), module.bias)
        for update in updates:
            if update.b_bias is not None:
                own = update.scaling * update.b_bias
                bias = own if bias is None else bias + own
        merged = self.merged(names)
        if merged is not None:
            return merged, bias, []
        return self.matrix(module.weight), bias, updates

    def effective_weight(self) -> np.ndarray:
        base = weight = self.module().weight.numpy()
        for update in self.versions_of():
            if isinstance(update, Update):
                weight = update.merged(weight, base)
        return weight

    def effective_bias(self) -> np.ndarray | None:
        bias = self._parts(self.active.names)[1]
        return None if bias is None else bias.numpy()


class LoraLinear(LoraLayer):
    """A linear layer with the updates of the active adapters, see `Update`.

    Several are applied in order, as in PEFT: a plain one adds to the output so far, one with DoRA also scales it.
    """

    def run(self, x, names: Sequence[str], mask_start: int = 0):
        weight, bias, updates = self._parts(names)
        if not updates:
            return ops.linear(x, weight, bias)
        if len(updates) == 1:
            return updates[0].output(x, weight, bias, mask_start)
        y = updates[0].output(x, weight, None, mask_start)
        for update in updates[1:]:
            y = update.apply_to_output(y, x, weight, mask_start)
        return y if bias is None else y + bias

    def for_inference(self):
        """Weight, bias and low-rank update of the layer as the active adapters make it.

        Returns: the matrix (out, in); the bias or None; A (R, in) and scaling · B (out, R) as numpy arrays, or None.
            With DoRA the update is merged into a new matrix.
        """
        weight, bias, updates = self._parts(self.active.names)
        if not updates:
            return weight, bias, None
        if any(update.magnitude is not None for update in updates):
            return Matrix.of(self.effective_weight(), weight.precision), bias, None
        a, b = zip(*(update.factors() for update in updates))
        return weight, bias, (np.concatenate(a), np.concatenate(b, 1))

    def head_matrix(self, adapters: Sequence[str] | None = None):
        """The matrix (out, in) with the updates applied, for an output head, whose logits are never all in memory.

        Args:
            adapters: names of those to apply; by default the active ones.

        Raises:
            UserError: an update has dropout on, which no matrix can express.
        """
        weight, _, updates = self._parts(self.active.names if adapters is None else adapters)
        if not updates:
            return weight
        w = weight.var
        for update in updates:
            w = update.apply_to_weight(w, weight)
        return TrainedMatrix(w, weight.precision)


def is_fused_qkv(name: str) -> bool:
    """Is this GPT-2's c_attn, which computes queries, keys and values side by side?"""
    return name.rsplit(".", 1)[-1] == "c_attn"


def trained_rows(out_features: int) -> np.ndarray:
    """(out, 1): 1 for the rows of queries and values of a fused projection, 0 for those of keys."""
    rows = np.ones((out_features, 1), np.float32)
    third = out_features // 3
    rows[third : 2 * third] = 0.0
    return rows
