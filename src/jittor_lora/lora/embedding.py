"""An embedding with low-rank updates beside its frozen table."""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np

from jittor_lora.lora.adapted import ActiveAdapters, AdaptedModule, trained_arrays
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.init import initial_embedding_pair
from jittor_lora.model.modules import Embedding
from jittor_lora.ops import Matrix
from jittor_lora.system.runtime import jt


class EmbeddingUpdate(jt.Module):
    """What one adapter adds to row i of a table W (rows, D): scaling · (Aᵀ)_i Bᵀ, as in PEFT without dropout.

    With DoRA the columns of W + scaling · Aᵀ Bᵀ are scaled to trained norms, see `lora.layer`.

    Args:
        base: the frozen embedding.
        config: rank, scaling, DoRA.
        name: of the module; together with `seed` it determines the random initialisation.
        values: the trained arrays, by the names in `trained`; by default they are initialised.

    Attributes:
        lora_A: (r, rows), float32, trained; initialised to zero.
        lora_B: (D, r), float32, trained.
        magnitude: (D,), trained, with DoRA; else None.
    """

    def __init__(self, base: Embedding, config: LoraConfig, name: str, seed: int = 0,
                 values: Mapping[str, np.ndarray] | None = None):
        super().__init__()
        self.scaling = config.scaling_of(name)
        if values is None:
            a, b = initial_embedding_pair(config, name, seed, *base.weight.shape)
            values = {"lora_embedding_A": a, "lora_embedding_B": b}
            if config.use_dora:
                values["lora_magnitude_vector"] = np.linalg.norm(base.weight.numpy(), axis=0)
        self.trained = trained_arrays(values, ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"))
        self.lora_A, self.lora_B = self.trained["lora_embedding_A"], self.trained["lora_embedding_B"]
        self.magnitude = self.trained.get("lora_magnitude_vector")

    def apply_to_output(self, y, ids: np.ndarray, weight: Matrix):
        """y (N, D), the rows `ids` of the table, with this update applied."""
        rows = self.lora_A.transpose()[jt.array(ids)]  # (N, r)
        y = y + self.scaling * jt.nn.matmul_transpose(rows, self.lora_B)
        return y if self.magnitude is None else y * self._scale(weight)

    def merged(self, table: np.ndarray, base: np.ndarray) -> np.ndarray:
        """`table` (rows, D) with this update merged in. base: the frozen table, whose column norms DoRA uses."""
        update = self.lora_A.numpy().T @ (self.lora_B.numpy() * np.float32(self.scaling)).T
        if self.magnitude is None:
            return table + update
        return (table + update) * (self.magnitude.numpy() / np.linalg.norm(base + update, axis=0))

    def _scale(self, weight: Matrix):
        """m / ‖W + scaling · Aᵀ Bᵀ‖ by column, (D,); no gradient flows through the norms."""
        a, b = self.lora_A.detach(), self.lora_B.detach()
        cross = jt.matmul(a, weight.var).transpose()  # Wᵀ Aᵀ, (D, r)
        gram = jt.nn.matmul_transpose(a, a)
        squares = weight.squares(0) + self.scaling * (b * (2.0 * cross + self.scaling * jt.matmul(b, gram))).sum(1)
        return self.magnitude / jt.sqrt(squares).detach()


class LoraEmbedding(AdaptedModule):
    """An embedding with the updates of the active adapters. A tied output head keeps the frozen table, as in PEFT."""

    def __init__(self, base: Embedding, active: ActiveAdapters, name: str):
        super().__init__(base, active, name)
        self._merged: tuple[tuple[str, ...], Matrix] | None = None

    def run(self, x, names: Sequence[str], mask_start: int = 0):
        if self._merged is not None and self._merged[0] == tuple(names):
            return self._merged[1].rows(x)
        module = self.module(names)
        y = module(x)
        for update in self.versions_of(names):
            if isinstance(update, EmbeddingUpdate):
                y = update.apply_to_output(y, x, module.weight)
        return y

    @property
    def table(self) -> np.ndarray:
        """(rows, D) float32 with the active adapters merged in."""
        return self.effective_weight()

    def effective_weight(self) -> np.ndarray:
        base = table = self.module().table
        for update in self.versions_of():
            if isinstance(update, EmbeddingUpdate):
                table = update.merged(table, base)
        return table

    def merge(self) -> None:
        """Merge the active updates into a table that replaces the frozen one while these adapters are active."""
        self._merged = self.active.names, Matrix.of(self.effective_weight(), self.base.weight.precision)

    def unmerge(self) -> None:
        """Use the frozen table, which was not changed, and the updates beside it again."""
        self._merged = None
