"""What a language model of either family can do with a token stream."""

from __future__ import annotations

from typing import Callable, Hashable, Iterator

import numpy as np

from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.model.cache import KeyValueCache
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.modules import Pass, RowLabels, in_order
from jittor_lora.model.recompute import recomputed
from jittor_lora.ops import Matrix, as_var
from jittor_lora.system.runtime import jt


class CausalLM(jt.Module):
    """Base of the networks; a family defines `_rows`, `_final_norm` and `lm_head`.

    All weights are frozen: a module that trains brings parameters of its own.

    Attributes:
        activation_checkpointing: keep only each block's input for the gradient.
        watch: called with the rows that go into each block, where it is set.
        row_labels: labels of the rows of the next runs, for modules that treat them differently; None without.
        lm_head: the output head, a linear layer; where it is tied its weight is the embedding's.
    """

    activation_checkpointing = False
    watch: Callable[[jt.Var], None] | None = None
    row_labels: RowLabels | None = None
    lm_head: jt.Module

    def __init__(self, config: ModelConfig, precision: str = "fp32"):
        super().__init__()
        self.config, self.precision = config, precision

    def hidden(self, tokens: np.ndarray, positions: np.ndarray, layout: Layout, rows: np.ndarray | None = None,
               cache: KeyValueCache | None = None, cache_rows: np.ndarray | None = None):
        """Final states, after the last norm, of the rows that are asked for.

        The last block computes keys and values of all rows, and the rest only of the rows asked for. What depends on
        frozen weights alone needs no gradient and keeps nothing for one, as in PyTorch.

        Args:
            tokens, positions: (N,) int32.
            layout: which keys each row sees.
            rows: (M,) the rows wanted, at least one, all if None; repeats are allowed.
            cache, cache_rows: where this stream's keys and values go, if it is read in several runs; the layout's
                key rows are then rows of the cache.

        Returns: (M, D).

        Raises:
            UserError: a token or a position that the model does not have.
            ValueError: the layout, the positions or the rows are not for this many tokens.
        """
        if not layout.rows == len(positions) == len(tokens):
            raise ValueError(f"{len(tokens)} tokens, {len(positions)} positions, {layout.rows} rows in the layout")
        check_range("token id", tokens, self.config.vocab_size)
        check_range("position", positions, self.config.max_positions)
        where = None if cache_rows is None else jt.array(np.asarray(cache_rows, np.int32))
        if rows is not None and not (len(rows) and 0 <= min(rows) and max(rows) < len(tokens)):
            raise ValueError(f"rows asked for: expected one or more from 0 to {len(tokens) - 1}, found {list(rows)}")
        distinct, order = (None, None) if rows is None else np.unique(rows, return_inverse=True)
        # Jittor's switch for PyTorch's rule that an output needs a gradient only if an input does. It also changes
        # assignments in place, of which a cache has some.
        with jt.flag_scope(th_mode=int(cache is None)):
            wanted = distinct if distinct is not None and len(distinct) < len(tokens) else None
            if self.row_labels is not None:
                self.row_labels.begin(len(tokens), wanted, rows)
            run = Pass(positions, layout, cache, where, precision=self.precision)
            x = self._final_norm(self._rows(tokens, run, wanted))
            if rows is None or np.array_equal(rows, distinct):
                return x
            return ops.rows(x, as_var(order.astype(np.int32)))

    def through(self, block: jt.Module, x, *context):
        """The rows x behind this block: block(x, *context)."""
        if self.watch is not None:
            self.watch(x)
        if self.activation_checkpointing and not jt.flags.no_grad:
            return recomputed(block, x, *context)
        return block(x, *context)

    def logits(self, hidden):
        """(M, D) → (M, V)."""
        return in_order([(rows, ops.linear(states, head)) for head, rows, states in self._heads(hidden)])

    def loss(self, hidden, labels: np.ndarray, weights: np.ndarray, smoothing: float = 0.0):
        """`ops.token_cross_entropy` of the final states (M, D) that `hidden` gave, with the head of each."""
        losses = [ops.token_cross_entropy(states, head, labels[rows], weights[rows], smoothing)
                  for head, rows, states in self._heads(hidden)]
        return sum(losses[1:], losses[0])

    def _heads(self, hidden) -> Iterator[tuple[Matrix, np.ndarray, jt.Var]]:
        """Each head with the rows of the final states that go through it, and these states."""
        every = np.arange(hidden.shape[0], dtype=np.int32)
        parts = [(None, every)] if self.row_labels is None else self.row_labels.asked()
        heads = [self.head(label) for label, _ in parts]
        if all(head is heads[0] for head in heads):
            yield heads[0], every, hidden
        else:
            yield from ((head, rows, hidden[jt.array(rows)]) for head, (_, rows) in zip(heads, parts))

    def new_cache(self, capacity: int) -> KeyValueCache:
        c = self.config
        return KeyValueCache(c.layers, capacity, c.kv_heads, c.head_dim)

    def head(self, label: Hashable = None) -> Matrix:
        """The (V, D) matrix that turns final states, of rows with this label, into logits."""
        return self.lm_head.matrix(label)

    def _rows(self, tokens: np.ndarray, run: Pass, wanted: np.ndarray | None):
        """Embedding and blocks: (N, D), or (M, D) of the rows `wanted` (M,), which are ascending."""
        raise NotImplementedError

    def _final_norm(self, x):
        raise NotImplementedError


def check_range(what: str, values: np.ndarray, limit: int) -> None:
    """Jittor reads past the end of a table without a word, so ids are checked before they reach it."""
    if len(values) == 0:
        raise UserError(f"{what}: the stream is empty; at least one token is needed.")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        raise UserError(f"{what} {low if low < 0 else high} is out of range: the model has 0 to {limit - 1}. "
                        "Use the tokenizer that belongs to the model, and shorter texts than its longest.")
