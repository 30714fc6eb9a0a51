"""A layout in the forms that attention takes, computed once for all layers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from jittor_lora.ops import tiles
from jittor_lora.system.runtime import jt

if TYPE_CHECKING:
    from jittor_lora.data.layout import Layout


class AttentionPlan:
    """A layout, converted on first use into what an implementation of attention takes.

    Args:
        layout: which keys each query row sees.
        precision: of a kernel's products, "fp32" or "bf16"; the portable operation computes in fp32.

    Attributes:
        masks: the layout's groups, each with its additive mask (rows, keys), None for a group without queries.
        segments: (S, 6) int32, see `Layout.segments`.
        groups: (G, 4) int32: first segment, end of segments, first key row, end of key rows.
        query_tiles, key_tiles: int32, see `ops.tiles`.
    """

    def __init__(self, layout: Layout, precision: str = "fp32"):
        self.layout, self.precision = layout, precision

    @cached_property
    def masks(self):
        def mask(group):
            return jt.array(np.where(group.mask(), 0.0, -1e30).astype(np.float32)) if group.q1 > group.q0 else None

        return [(group, mask(group)) for group in self.layout.groups]

    @cached_property
    def segments(self):
        return jt.array(self.layout.segments()).stop_grad()

    @cached_property
    def groups(self):
        rows, first = [], 0
        for group in self.layout.groups:
            rows.append((first, first + len(group.segments), group.k0, group.k1))
            first += len(group.segments)
        return jt.array(np.array(rows, np.int32).reshape(-1, 4)).stop_grad()

    @cached_property
    def query_tiles(self):
        return jt.array(tiles.query_tiles(self.layout)).stop_grad()

    @cached_property
    def key_tiles(self):
        return jt.array(tiles.key_tiles(self.layout)).stop_grad()

    def check_keys(self, count: int) -> None:
        """
        Raises:
            ValueError: some key rows belong to no group, so their gradient would be missing.
        """
        groups = self.layout.groups
        borders = [group.k0 for group in groups] + [count]
        if borders[0] != 0 or borders[1:] != [group.k1 for group in groups]:
            raise ValueError("the groups' keys must be contiguous for a gradient")
