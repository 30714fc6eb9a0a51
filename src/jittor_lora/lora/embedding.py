"""An embedding with low-rank updates beside its frozen table."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from jittor_lora.lora.adapted import Adapted, Choice
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.init import initial_embedding_pair
from jittor_lora.model.modules import Embedding
from jittor_lora.ops import Matrix
from jittor_lora.system.runtime import jt


class EmbeddingUpdate(jt.Module):
    """What one adapter adds to row i of a table W (rows, D): scaling · (Aᵀ)_i Bᵀ, as in PEFT without dropout.

    With DoRA the columns of W + scaling · Aᵀ Bᵀ are brought to trained lengths, see `lora.layer`.

    Attributes:
        lora_A: (r, rows), float32, trained, zero at the start.
        lora_B: (D, r), float32, trained.
        magnitude: (D,), trained, with DoRA; else None.
    """

    def __init__(self, base: Embedding, config: LoraConfig, name: str, seed: int = 0):
        super().__init__()
        self.scaling = config.scaling_of(name)
        a, b = initial_embedding_pair(config, name, seed, *base.weight.shape)
        self.lora_A, self.lora_B = jt.array(a), jt.array(b)
        self.magnitude = jt.array(np.linalg.norm(base.weight.numpy(), axis=0)) if config.use_dora else None

    @property
    def trained(self) -> dict[str, jt.Var]:
        arrays = {"lora_embedding_A": self.lora_A, "lora_embedding_B": self.lora_B,
                  "lora_magnitude_vector": self.magnitude}
        return {name: array for name, array in arrays.items() if array is not None}

    def onto(self, y, ids: np.ndarray, weight: Matrix):
        """y (N, D), the rows `ids` of the table, with this update applied to them."""
        rows = self.lora_A.transpose()[jt.array(ids)]  # (N, r)
        y = y + self.scaling * jt.nn.matmul_transpose(rows, self.lora_B)
        return y if self.magnitude is None else y * self._scale(weight)

    def _scale(self, weight: Matrix):
        """m / ‖W + scaling · Aᵀ Bᵀ‖, lengths of the columns, (D,); no gradient through the length."""
        a, b = self.lora_A.detach(), self.lora_B.detach()
        cross = jt.matmul(a, weight.var).transpose()  # Wᵀ Aᵀ, (D, r)
        gram = jt.nn.matmul_transpose(a, a)
        squares = weight.squares(0) + self.scaling * (b * (2.0 * cross + self.scaling * jt.matmul(b, gram))).sum(1)
        return self.magnitude / jt.sqrt(squares).detach()

    def applied(self, table: np.ndarray, base: np.ndarray) -> np.ndarray:
        """`table` (rows, D) with this update in it. base: the frozen table, of which DoRA takes the lengths."""
        update = self.lora_A.numpy().T @ (self.lora_B.numpy() * np.float32(self.scaling)).T
        if self.magnitude is None:
            return table + update
        return (table + update) * (self.magnitude.numpy() / np.linalg.norm(base + update, axis=0))


class LoraEmbedding(Adapted):
    """An embedding with the updates of the adapters that act. An output head that is tied keeps the frozen table, as in
    PEFT."""

    def __init__(self, base: Embedding, choice: Choice, name: str):
        super().__init__(base, choice, name)
        self._merged: tuple[tuple[str, ...], Matrix] | None = None

    def run(self, x, names: Sequence[str]):
        if self._merged is not None and self._merged[0] == tuple(names):
            return self._merged[1].rows(x)
        module = self.module(names)
        y = module(x)
        for update in self.acting_versions(names):
            if isinstance(update, EmbeddingUpdate):
                y = update.onto(y, x, module.weight)
        return y

    @property
    def table(self) -> np.ndarray:
        """(rows, D) float32 as it acts."""
        return self.effective_weight()

    def effective_weight(self) -> np.ndarray:
        base = table = self.module().table
        for update in self.acting_versions():
            if isinstance(update, EmbeddingUpdate):
                table = update.applied(table, base)
        return table

    def merge(self) -> None:
        """Fold the updates that act into a table that takes the frozen one's place while these adapters act."""
        self._merged = self.choice.active, Matrix.of(self.effective_weight(), self.base.weight.precision)

    def unmerge(self) -> None:
        self._merged = None
