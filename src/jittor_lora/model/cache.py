"""Keys and values of rows already read, so that a new token costs one row."""

from __future__ import annotations

from jittor_lora.system.runtime import jt


class KeyValueCache:
    """Rows of keys and values of every layer; which row belongs to what is the business of the layout.

    Args:
        layers, capacity, heads, head_dim: holds `capacity` rows of (heads, head_dim) keys and values a layer.
    """

    def __init__(self, layers: int, capacity: int, heads: int, head_dim: int):
        empty = (capacity, heads, head_dim)
        self.capacity = capacity
        self._keys = [jt.zeros(empty) for _ in range(layers)]
        self._values = [jt.zeros(empty) for _ in range(layers)]

    def write(self, layer: int, rows, k, v):
        """Put k and v (N, heads, head_dim) at these rows; returns all keys and all values, (capacity, heads, d)."""
        self._keys[layer][rows] = k
        self._values[layer][rows] = v
        return self._keys[layer], self._values[layer]

    def copy(self, other: KeyValueCache, source: int, target: int, count: int) -> None:
        """Put `count` rows of another cache of the same network, or of this one, from `source` on at `target`."""
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for layer, rows in enumerate(theirs):
                if count:
                    mine[layer][target : target + count] = rows[source : source + count]
