"""One pass of a network over a stream."""

from __future__ import annotations

import copy

import numpy as np

from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.model.cache import KeyValueCache
from jittor_lora.model.rows import ALL_ALIKE, Rows
from jittor_lora.ops import AttentionPlan, as_var


class Pass:
    """What the blocks need besides their input: the layout, the cache, and which rows go on.

    Args:
        positions: (N,) int32.
        layout: which keys each row sees: rows of the stream, or of the cache if there is one.
        cache, cache_rows: where the keys and values of this pass are written, and at which rows, (N,) int32.
        precision: of attention's products, "fp32" or "bf16".
        rows: about all N rows.

    Attributes:
        wanted_rows: about the rows that go on after attention: all, or in the last block those asked for.
    """

    def __init__(self, positions: np.ndarray, layout: Layout, cache: KeyValueCache | None = None, cache_rows=None,
                 precision: str = "fp32", rows: Rows = ALL_ALIKE):
        self.positions, self.rows, self.wanted_rows = positions, rows, rows
        self._layout, self._precision = layout, precision
        self._cache, self._cache_rows = cache, cache_rows
        self._wanted = None
        self._plan = AttentionPlan(layout, precision)

    def ending_in(self, wanted: np.ndarray | None, rows: Rows) -> Pass:
        """The same pass for the last block, whose queries are of the rows `wanted` (M,) alone; keys and values are of
        all N.

        Args:
            wanted: ascending; None for all.
            rows: about the rows `wanted`.
        """
        last = copy.copy(self)
        last.wanted_rows = rows
        if wanted is not None:
            last._wanted = as_var(np.asarray(wanted, np.int32)).stop_grad()
            last._plan = AttentionPlan(self._layout.restricted(wanted), self._precision)
        return last

    @property
    def is_partial(self) -> bool:
        """Do only some rows go on after attention?"""
        return self._wanted is not None

    def wanted(self, x):
        """The rows of x (N, …) that go on: (M, …)."""
        return x if self._wanted is None else ops.rows(x, self._wanted)

    def attend(self, layer: int, q, k, v, scale: float | None = None):
        """Attention of q (M, H, d) to k and v (N, G, d) of this layer: (M, H · d). `scale`: see `ops.attention`."""
        if self._cache is not None:
            k, v = self._cache.write(layer, self._cache_rows, k, v)
        return ops.attention(q, k, v, self._plan, scale)

    def attend_fused(self, layer: int, qkv, heads: int, scale: float | None = None):
        """As `attend`, with queries, keys and values side by side, (N, 3 · D)."""
        if self._cache is None:
            return ops.fused_attention(qkv, heads, self._plan, self._wanted, scale)
        n, width = qkv.shape[0], qkv.shape[1] // 3
        q, k, v = (qkv[:, i * width : (i + 1) * width].reshape((n, heads, width // heads)) for i in range(3))
        return self.attend(layer, self.wanted(q), k, v, scale)
