"""A layout in the forms that attention takes, computed once for all layers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Sequence

import numpy as np

from jittor_lora.ops import tiles
from jittor_lora.system.runtime import jt

if TYPE_CHECKING:
    from jittor_lora.data.layout import Group, Layout


class AttentionPlan:
    """A layout, converted on first use into what an implementation of attention takes.

    Args:
        layout: which keys each query row sees.
        precision: of a kernel's products, "fp32" or "bf16"; the portable operation computes in fp32.

    Attributes:
        segments: (S, 6) int32, see `Layout.segments`.
        groups: (G, 4) int32: first segment, end of segments, first key row, end of key rows.
        query_tiles, key_tiles: int32, see `ops.tiles`.
    """

    def __init__(self, layout: Layout, precision: str = "fp32"):
        self.layout, self.precision = layout, precision
        self._batches: dict[int, list[Batch]] = {}

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

    def batches(self, scores: int) -> list[Batch]:
        """The groups in batches, for products of many matrices at a time.

        Args:
            scores: what a batch of several groups with queries has at most.
        """
        if scores not in self._batches:
            seen = self.layout.seen()
            self._batches[scores] = [Batch(groups, seen) for groups in _runs(self.layout.groups, scores)]
        return self._batches[scores]

    def check_keys(self, count: int) -> None:
        """
        Raises:
            ValueError: some key rows belong to no group, so their gradient would be missing.
        """
        groups = self.layout.groups
        borders = [group.k0 for group in groups] + [count]
        if borders[0] != 0 or borders[1:] != [group.k1 for group in groups]:
            raise ValueError("the groups' keys must be contiguous for a gradient")


class Batch:
    """Consecutive groups of a layout, at least one of them with queries, as blocks of one size.

    Each group is a block, padded to the longest; or all of them together are one, if that gives fewer scores.

    Args:
        groups: these groups.
        seen: what the rows of the layout see, `Layout.seen`.

    Attributes:
        scores: B · R · C, for B blocks of R queries and C keys.
        queries: (B, R) int32, the query row at each place; -1 for padding.
        keys: (B, C) int32, the key row likewise.
        mask: (1, B, 1, R, C) float32, to be added to scores: 0 where a row sees a key, else -1e30.
        query_places, key_places: (2, rows) int32, the block of each row of these groups and its place there; -1 for
            keys that no query sees.
    """

    def __init__(self, groups: Sequence[Group], seen: np.ndarray):
        self._groups, self._seen = groups, seen
        queried = [group for group in groups if group.q1 > group.q0]
        self._blocks = [queried] if _scores(queried, together=True) < _scores(queried) else [[g] for g in queried]
        self._queries = _padded([[np.arange(g.q0, g.q1) for g in block] for block in self._blocks])
        self._keys = _padded([[np.arange(g.k0, g.k1) for g in block] for block in self._blocks])
        self.scores = self._queries.size * self._keys.shape[1]

    @cached_property
    def queries(self):
        return jt.array(self._queries).stop_grad()

    @cached_property
    def keys(self):
        return jt.array(self._keys).stop_grad()

    @cached_property
    def mask(self):
        key = self.keys.unsqueeze(1)
        p0, p1, k0, k1 = (
            jt.array(_padded([[column[g.q0 : g.q1] for g in block] for block in self._blocks])).unsqueeze(2)
            for column in self._seen.T)
        seen = (key >= p0) & (key < p1) | (key >= k0) & (key < k1)
        return ((1.0 - seen.float32()) * -1e30).unsqueeze(0).unsqueeze(2).stop_grad()

    @cached_property
    def query_places(self):
        return _places(self._queries, self._groups[0].q0, self._groups[-1].q1)

    @cached_property
    def key_places(self):
        return _places(self._keys, self._groups[0].k0, self._groups[-1].k1)


def _runs(groups: Sequence[Group], scores: int) -> list[list[Group]]:
    """The groups, cut where those with queries would have more than so many scores. Those without join any other."""
    runs: list[list[Group]] = [[]]
    queried: list[Group] = []  # of the last run
    for group in groups:
        if group.q1 > group.q0:
            if queried and min(_scores([*queried, group]), _scores([*queried, group], together=True)) > scores:
                runs.append([])
                queried = []
            queried.append(group)
        runs[-1].append(group)
    return runs


def _scores(groups: Sequence[Group], together: bool = False) -> int:
    """The number of scores of these groups, each padded to the longest, or all `together`."""
    rows, keys = [group.q1 - group.q0 for group in groups], [group.k1 - group.k0 for group in groups]
    return sum(rows) * sum(keys) if together else len(groups) * max(rows) * max(keys)


def _padded(blocks: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """(blocks, longest) int32: each block's arrays one after the other, and then -1."""
    whole = [np.concatenate(block) for block in blocks]
    found = np.full((len(whole), max(map(len, whole))), -1, np.int32)
    for row, block in zip(found, whole):
        row[: len(block)] = block
    return found


def _places(rows: np.ndarray, first: int, end: int):
    """(2, end - first) int32: where each row from `first` on is in `rows`, -1 for nowhere."""
    places = np.full((2, end - first), -1, np.int32)
    block, place = np.nonzero(rows >= 0)
    places[:, rows[block, place] - first] = block, place
    return jt.array(places).stop_grad()
