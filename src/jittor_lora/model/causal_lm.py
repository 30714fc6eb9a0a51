"""A language model on a token stream: hidden states, logits, loss."""

from __future__ import annotations

from typing import Callable, ContextManager, Iterator, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.model.cache import KeyValueCache
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.forward_pass import Pass
from jittor_lora.model.recompute import recomputed
from jittor_lora.model.rows import Rows, grouped, in_order
from jittor_lora.ops import Matrix
from jittor_lora.system.runtime import jt


class CausalLM(jt.Module):
    """Base class of the networks; each defines `_states` and `lm_head`.

    All weights are frozen: a module that trains brings its own parameters.

    Attributes:
        activation_checkpointing: keep only each block's input for the backward pass.
        watch: if set, called with the rows that enter each block.
        row_adapters: in a mixed batch, the adapter of each row of the stream, None for the base alone; None: all rows
            use the active adapters. See `lora.adapters.Adapters.by_row`.
        lm_head: the output head, a linear layer; if tied, its weight is the embedding's.
    """

    activation_checkpointing = False
    watch: Callable[[jt.Var], None] | None = None
    row_adapters: Sequence[str | None] | None = None
    lm_head: jt.Module

    def __init__(self, config: ModelConfig, precision: str = "fp32"):
        super().__init__()
        self.config, self.precision = config, precision

    def hidden(self, tokens: np.ndarray, positions: np.ndarray, layout: Layout, rows: np.ndarray | None = None,
               cache: KeyValueCache | None = None, cache_rows: np.ndarray | None = None, rows_before: int = 0,
               label_rows_before: int = 0):
        """Final hidden states, after the last norm, of the rows asked for.

        The last block computes keys and values of all rows, and everything else only for the rows asked for. Where
        only frozen weights are involved, no gradient is needed and nothing is kept for one, as in PyTorch.

        Args:
            tokens, positions: (N,) int32.
            layout: which keys each row sees.
            rows: (M,) the rows wanted, at least one, ascending and distinct; all if None.
            cache, cache_rows: where this stream's keys and values go if it is read in several passes; the layout's key
                rows are then rows of the cache.
            rows_before, label_rows_before: if these tokens are a part of a stream, the rows of that stream before it,
                and how many of those are wanted. Dropout masks are numbered by the whole stream's rows;
                in the last block, after attention, by its wanted rows.

        Returns: (M, D).

        Raises:
            UserError: a token or a position that the model does not have.
            ValueError: the layout, the positions, the rows or `row_adapters` do not match the tokens.
        """
        if not layout.rows == len(positions) == len(tokens):
            raise ValueError(f"{len(tokens)} tokens, {len(positions)} positions, {layout.rows} rows in the layout")
        if self.row_adapters is not None and len(self.row_adapters) != len(tokens):
            raise ValueError(f"{len(tokens)} rows, and adapters for {len(self.row_adapters)}")
        check_range("token id", tokens, self.config.vocab_size)
        check_range("position", positions, self.config.max_positions)
        where = None if cache_rows is None else jt.array(np.asarray(cache_rows, np.int32))
        if rows is not None and not (
                len(rows) and 0 <= rows[0] and rows[-1] < len(tokens) and (np.diff(rows) > 0).all()):
            raise ValueError(f"rows asked for: expected one or more from 0 to {len(tokens) - 1}, ascending, found "
                             f"{list(rows)}")
        wanted = rows if rows is not None and len(rows) < len(tokens) else None
        # Jittor's flag for PyTorch's rule that an output needs a gradient only if an input does. It also changes
        # in-place assignment, which a cache uses.
        with jt.flag_scope(th_mode=int(cache is None)):
            run = Pass(positions, layout, cache, where, self.precision, self._rows(rows_before))
            last = run.ending_in(wanted, self._rows(rows_before if rows is None else label_rows_before, wanted))
            return self._states(tokens, run, last)

    def products(self) -> ContextManager[None]:
        """Within the block products are in this network's precision, see `ops.stock_products`."""
        return ops.stock_products(self.precision)

    def through(self, block: jt.Module, x, *context):
        """block(x, *context), recomputed in the backward pass if `activation_checkpointing` says so."""
        if self.watch is not None:
            self.watch(x)
        if self.activation_checkpointing and not jt.flags.no_grad:
            return recomputed(block, x, *context)
        return block(x, *context)

    def logits(self, hidden, rows: np.ndarray | None = None):
        """(M, D) → (M, V).

        Args:
            hidden: final states that `hidden` returned.
            rows: (M,) the rows of the stream that they belong to, all if None; matters only in a mixed batch.
        """
        return in_order([(part, ops.linear(states, head)) for head, part, states in self._by_head(hidden, rows)])

    def loss(self, hidden, labels: np.ndarray, weights: np.ndarray, smoothing: float = 0.0,
             rows: np.ndarray | None = None):
        """`ops.token_cross_entropy` of final states (M, D); arguments as for `logits`."""
        losses = [ops.token_cross_entropy(states, head, labels[part], weights[part], smoothing)
                  for head, part, states in self._by_head(hidden, rows)]
        return sum(losses[1:], losses[0])

    def _by_head(self, hidden, rows: np.ndarray | None) -> Iterator[tuple[Matrix, np.ndarray, jt.Var]]:
        """Each output head, the indices of the final states that go through it, and these states."""
        every = np.arange(hidden.shape[0], dtype=np.int32)
        parts = self._rows(0, rows).by_adapter or [(None, every)]
        if sum(len(part) for _, part in parts) != len(every):
            raise ValueError(f"{len(every)} states in a mixed batch: say which rows of the stream they belong to")
        heads = [self.head(names) for names, _ in parts]
        if all(head is heads[0] for head in heads):
            yield heads[0], every, hidden
        else:
            yield from ((head, part, hidden[jt.array(part)]) for head, (_, part) in zip(heads, parts))

    def _rows(self, mask_start: int, chosen: np.ndarray | None = None) -> Rows:
        """What modules are told about the rows `chosen` of the stream, all if None."""
        if self.row_adapters is None:
            return Rows(mask_start)
        names = self.row_adapters if chosen is None else [self.row_adapters[row] for row in chosen]
        return Rows(mask_start, grouped(names))

    def new_cache(self, capacity: int) -> KeyValueCache:
        c = self.config
        return KeyValueCache(c.layers, capacity, c.kv_heads, c.head_dim)

    def head(self, adapters: Sequence[str] | None = None) -> Matrix:
        """The (V, D) matrix that turns final states into logits.

        Args:
            adapters: names of those applied to it; by default the active ones.
        """
        return self.lm_head.head_matrix(adapters)

    def _states(self, tokens: np.ndarray, run: Pass, last: Pass):
        """Final states (M, D): embedding, blocks with `run`, the last block with `last`, final norm."""
        raise NotImplementedError


def check_range(what: str, values: np.ndarray, limit: int) -> None:
    """
    Raises:
        UserError: a value outside 0 to limit - 1, or none at all; Jittor would silently read past the end of a table.
    """
    if len(values) == 0:
        raise UserError(f"{what}: the stream is empty; at least one token is needed.")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        raise UserError(f"{what} {low if low < 0 else high} is out of range: the model has 0 to {limit - 1}. "
                        "Use the tokenizer that belongs to the model, and shorter texts than its longest.")
