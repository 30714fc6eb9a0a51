"""An embedding with low-rank updates beside its frozen table."""

from __future__ import annotations

from typing import Callable, Iterator, Mapping, Sequence

import numpy as np

from jittor_lora.lora.adapted import MergeableModule, trained_arrays
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
        with_bias: has no effect, as an embedding has none.
        values: the trained arrays, by the names in `trained`; by default they are initialised.

    Attributes:
        lora_A: (r, rows), float32, trained; initialised to zero.
        lora_B: (D, r), float32, trained.
        magnitude: (D,), trained, with DoRA; else None.
    """

    def __init__(self, base: Embedding, config: LoraConfig, name: str, seed: int = 0, with_bias: bool = False,
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

    @staticmethod
    def shapes(base: Embedding, config: LoraConfig, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the trained arrays, by their names in `trained`."""
        (rows, width), rank = base.weight.shape, config.rank_of(name)
        shapes = {"lora_embedding_A": (rank, rows), "lora_embedding_B": (width, rank)}
        if config.use_dora:
            shapes["lora_magnitude_vector"] = (width,)
        return shapes

    @staticmethod
    def refusals(base: Embedding, config: LoraConfig, name: str) -> Iterator[str]:
        """What the settings ask for that an embedding cannot do."""
        if config.changes_base:
            yield f"init: {config.init} is for linear layers, and {name} is an embedding."
        if config.lora_bias:
            yield f"lora_bias: not supported for {name}."

    def apply_to_output(self, y, ids: np.ndarray, weight: Matrix):
        """y (N, D), the rows `ids` of the table, with this update applied."""
        rows = self._rows(ids)  # (N, r)
        y = y + self.scaling * jt.nn.matmul_transpose(rows, self.lora_B)
        return y if self.magnitude is None else y * self._scale(weight)

    def _rows(self, ids: np.ndarray):
        """(Aᵀ)_i of the ids, (N, r)."""
        return self.lora_A.transpose()[jt.array(ids)]

    def change(self, weight: Matrix) -> Callable[[np.ndarray, Sequence[int]], np.ndarray]:
        """The update as it is now, as a function in numpy: rows (N, D) of the table `weight` and their N ids → the
        rows with the update. A row's bits are independent of the other rows."""
        a, b = self._factors()
        scale = None if self.magnitude is None else self._numpy_scale(weight.numpy() + a @ b.T)

        def changed(y: np.ndarray, ids: Sequence[int]) -> np.ndarray:
            y = y + np.stack([b @ row for row in a[ids]])
            return y if scale is None else y * scale

        return changed

    def merged(self, table: np.ndarray, base: np.ndarray) -> np.ndarray:
        """`table` (rows, D) with this update merged in. base: the frozen table, whose column norms DoRA uses."""
        a, b = self._factors()
        update = a @ b.T
        return table + update if self.magnitude is None else (table + update) * self._numpy_scale(base + update)

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Aᵀ (rows, r) and scaling · B (D, r); copies."""
        return self.lora_A.numpy().T.copy(), self.lora_B.numpy() * np.float32(self.scaling)

    def _numpy_scale(self, changed: np.ndarray) -> np.ndarray:
        """m / ‖W + scaling · Aᵀ Bᵀ‖ by column of `changed`, (D,)."""
        return self.magnitude.numpy() / np.linalg.norm(changed, axis=0)

    def _scale(self, weight: Matrix):
        """m / ‖W + scaling · Aᵀ Bᵀ‖ by column, (D,); no gradient flows through the norms."""
        a, b = self.lora_A.detach(), self.lora_B.detach()
        cross = jt.matmul(a, weight.var).transpose()  # Wᵀ Aᵀ, (D, r)
        gram = jt.nn.matmul_transpose(a, a)
        squares = weight.squares(0) + self.scaling * (b * (2.0 * cross + self.scaling * jt.matmul(b, gram))).sum(1)
        return self.magnitude / jt.sqrt(squares).detach()


class LoraEmbedding(MergeableModule):
    """An embedding with the updates of the active adapters. A tied output head keeps the frozen table, as in PEFT."""

    def run(self, x, names: Sequence[str], mask_start: int = 0):
        merged = self.merged(names)
        if merged is not None:
            return merged.rows(x)
        module = self.module(names)
        y = module(x)
        for update in self.versions_of(names):
            if isinstance(update, EmbeddingUpdate):
                y = update.apply_to_output(y, x, self.matrix(module.weight))
        return y

    def for_inference(self) -> Callable[[Sequence[int]], np.ndarray]:
        """As `Embedding.for_inference`, with the active adapters."""
        module = self.module()
        look_up = module.for_inference()
        changes = [version.change(module.weight) for version in self.versions_of()
                   if isinstance(version, EmbeddingUpdate)]

        def rows(ids: Sequence[int]) -> np.ndarray:
            y = look_up(ids)
            for change in changes:
                y = change(y, ids)
            return y

        return rows

    def effective_weight(self) -> np.ndarray:
        base = table = self.module().weight.numpy()
        for update in self.versions_of():
            if isinstance(update, EmbeddingUpdate):
                table = update.merged(table, base)
        return table
