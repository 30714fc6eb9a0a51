"""Keys and values of rows already processed, so that a new token costs one row."""

from __future__ import annotations

import numpy as np

from jittor_lora.system.runtime import jt


class KeyValueCache:
    """Rows of keys and values for every layer; the layout says which row belongs to what.

    Args:
        layers, capacity, heads, head_dim: there are `capacity` rows of (heads, head_dim) keys and values per layer.
    """

    def __init__(self, layers: int, capacity: int, heads: int, head_dim: int):
        empty = (capacity, heads, head_dim)
        self.capacity = capacity
        self._keys = [jt.zeros(empty) for _ in range(layers)]
        self._values = [jt.zeros(empty) for _ in range(layers)]

    def write(self, layer: int, rows, k, v):
        """Write k and v (N, heads, head_dim) to these rows; returns all of both, (capacity, heads, head_dim)."""
        self._keys[layer][rows] = k
        self._values[layer][rows] = v
        return self._keys[layer], self._values[layer]

    def copy(self, other: KeyValueCache, source: int, target: int, count: int) -> None:
        """Copy `count` rows, from row `source` of a cache of the same network (perhaps this one) to row `target`."""
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for layer, rows in enumerate(theirs):
                if count:
                    mine[layer][target : target + count] = rows[source : source + count]

    def rows(self, first: int, count: int) -> np.ndarray:
        """A copy of keys and values of some rows: (2, layers, count, heads, head_dim)."""
        return np.stack([[layer[first : first + count].numpy() for layer in both]
                         for both in (self._keys, self._values)])

    def put(self, first: int, rows: np.ndarray) -> None:
        """Write such a copy to the rows from `first` on."""
        for both, copies in zip((self._keys, self._values), rows):
            for layer, copy in zip(both, copies):
                layer[first : first + len(copy)] = jt.array(copy)
