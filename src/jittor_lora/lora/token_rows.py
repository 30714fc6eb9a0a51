"""Other rows for some tokens, in an embedding or an output head."""

from __future__ import annotations

import copy

import numpy as np

from jittor_lora.lora.adapted import TrainableCopy
from jittor_lora.ops import Matrix
from jittor_lora.system.runtime import jt


class TokenRows(TrainableCopy):
    """A copy of an embedding or head in which the rows of some tokens are replaced: PEFT's `trainable_token_indices`.
    The rows are as they were loaded; they are not trained.

    Args:
        base: the module with the weight (V, D).
        tokens: their ids, each below V, without duplicates.
        rows: (tokens, D) float32.
        tied: of a tied embedding, whose matrix this head uses too.

    Attributes:
        follows: whether there is such an embedding.
        trained: empty.
    """

    def __init__(self, base: jt.Module, tokens: np.ndarray, rows: np.ndarray, tied: TokenRows | None = None):
        jt.Module.__init__(self)
        self.tokens, self.rows, self.follows, self.trained = tokens, rows, tied is not None, {}
        self._state = []
        self.module = copy.copy(base)
        if tied is not None:
            self.module.weight = tied.module.weight
        else:
            table = base.weight.numpy().copy()
            table[tokens] = rows
            self.module.weight = Matrix.of(table, base.weight.precision)
