"""A layout in tiles of TILE query rows by TILE key rows, for kernels that compute one tile after the other.

Rows are cut by number alone: a tile may hold the end of one text and the beginning of the next, or many branches, and
meets each key that any of its rows sees once. So short texts and branches fill tiles as well as long ones do.
"""

from __future__ import annotations

from typing import Collection, Iterator

import numpy as np

from jittor_lora.data.layout import Layout, Segment

TILE = 64


def query_tiles(layout: Layout) -> np.ndarray:
    """What the rows of each tile of query rows see.

    Returns: (N + T + S, 4) int32, the lines of three tables, T being the number of tiles:
        for each query row p0, p1, k0, k1: it sees key rows [p0, p1) and [k0, k1);
        for each tile first query row, first step, end of its steps, 0, tiles of many steps first;
        for each step first key row, end of key rows, 1 if all rows of the tile see all of TILE key rows, 0.
    """
    seen = layout.seen()
    sees: list[set[tuple[int, int]]] = [set() for _ in range(0, layout.rows, TILE)]
    for s in _segments(layout):
        for tile in _touched(s.q0, s.q1):
            unseen = max(s.q1 - (tile + 1) * TILE, 0)  # own keys that the segment's last row in the tile does not see
            sees[tile] |= {(s.p0, s.p1), (s.k0, s.k1 - unseen)}
    tiles = [(tile * TILE, _steps(keys)) for tile, keys in enumerate(sees)]
    steps = _flat(tiles)
    rows = np.minimum(steps[:, 0, None] + np.arange(TILE), max(layout.rows - 1, 0))
    whole = _sees_all(seen[rows], steps[:, 1, None], steps[:, 2, None]).all(1)
    return _tables(seen, tiles, steps, whole)


def key_tiles(layout: Layout) -> np.ndarray:
    """The rows that see each tile of key rows, in the form of `query_tiles` without the table of rows.

    A tile's line begins with its first key row, a step's with its first query row and the end of its query rows. Keys
    that no row sees have a tile without steps.
    """
    count = layout.groups[-1].k1 if layout.groups else 0
    sees: list[set[tuple[int, int]]] = [set() for _ in range(0, count, TILE)]
    for s in _segments(layout):
        for tile in _touched(s.p0, s.p1):
            sees[tile].add((s.q0, s.q1))
        for tile in _touched(s.k0, s.k1):
            # Row q1 - 1 - i sees all but the last i own keys.
            sees[tile].add((max(s.q0, max(tile * TILE, s.k0) - s.k1 + s.q1), s.q1))
    tiles = [(tile * TILE, _steps(rows)) for tile, rows in enumerate(sees)]
    steps = _flat(tiles)
    rows = np.minimum(steps[:, 1, None] + np.arange(TILE), max(layout.rows - 1, 0))
    whole = _sees_all(layout.seen()[rows], steps[:, 0, None], steps[:, 0, None] + TILE).all(1)
    whole &= (steps[:, 0] + TILE <= count) & (steps[:, 2] - steps[:, 1] == TILE)
    return _tables(np.zeros((0, 4), np.int32), tiles, steps, whole)


def _segments(layout: Layout) -> Iterator[Segment]:
    return (segment for group in layout.groups for segment in group.segments)


def _touched(first: int, end: int) -> range:
    """The tiles that rows [first, end) lie in."""
    return range(first // TILE, -(-end // TILE)) if first < end else range(0)


def _steps(intervals: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs of at most TILE rows that together hold all rows of the intervals, some of which may overlap."""
    steps, covered = [], 0
    for first, end in _merged(intervals):
        first = max(first, covered)
        while first < end:
            steps.append(first)
            first = covered = first + TILE
    last = max((end for first, end in intervals if first < end), default=0)
    return [(first, min(first + TILE, last)) for first in steps]


def _merged(intervals: Collection[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    begin = until = 0
    for first, end in sorted(i for i in intervals if i[0] < i[1]):
        if first > until:
            if begin < until:
                yield begin, until
            begin = first
        until = max(until, end)
    if begin < until:
        yield begin, until


def _flat(tiles: list[tuple[int, list[tuple[int, int]]]]) -> np.ndarray:
    """(S, 3) int32: first row of the tile, step."""
    return np.array([(first, *step) for first, steps in tiles for step in steps], np.int32).reshape(-1, 3)


def _sees_all(seen: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Whether each row sees TILE key rows, [first, end)."""
    p0, p1, k0, k1 = np.moveaxis(seen, -1, 0)
    own = np.where((p1 == k0) & (p0 < p1), p0, k0)  # without a gap both intervals are one
    return (end - first == TILE) & (((p0 <= first) & (end <= p1)) | ((own <= first) & (end <= k1)))


def _tables(seen, tiles, steps, whole) -> np.ndarray:
    counts = np.array([len(steps) for _, steps in tiles], np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    zeros = np.zeros(len(tiles), np.int32)
    of_tiles = np.stack([np.array([first for first, _ in tiles], np.int32), ends - counts, ends, zeros], 1)
    of_steps = np.column_stack([steps[:, 1:], whole, np.zeros(len(steps))]).astype(np.int32)
    return np.concatenate([seen, of_tiles[np.argsort(-counts, kind="stable")], of_steps]).astype(np.int32)
