"""The attention mask of a token stream: which earlier rows each row sees.

A stream is a flat list of N tokens. A layout divides it into *groups*; a group is a shared prefix followed by its
branches. Rows of the prefix are causal among themselves; a row of a branch sees its whole prefix and the rows of its
own branch up to itself, never another branch or group. Plain text is a prefix without branches.

Keys may come from elsewhere than queries (a KV cache), so a layout is stored in a general form, as segments: a run of
query rows, the span of key rows that all of them see (the prefix), and the span of key rows that they see causally
(their own), aligned at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, NamedTuple, Sequence

import numpy as np


class Segment(NamedTuple):
    """Query rows [q0, q1) see key rows [p0, p1), and of key rows [k0, k1) row `q1 - 1 - i` sees all but the last i."""

    q0: int
    q1: int
    p0: int
    p1: int
    k0: int
    k1: int


@dataclass(frozen=True)
class Group:
    """Segments that share keys: query rows [q0, q1), possibly empty, see key rows within [k0, k1) only."""

    q0: int
    q1: int
    k0: int
    k1: int
    segments: tuple[Segment, ...]

    def mask(self) -> np.ndarray:
        """(q1 - q0, k1 - k0) bool: whether the query row sees the key row."""
        seen = np.zeros((self.q1 - self.q0, self.k1 - self.k0), bool)
        for s in self.segments:
            rows = slice(s.q0 - self.q0, s.q1 - self.q0)
            seen[rows, s.p0 - self.k0 : s.p1 - self.k0] = True
            queries, keys = s.q1 - s.q0, s.k1 - s.k0
            seen[rows, s.k0 - self.k0 : s.k1 - self.k0] = np.tri(queries, keys, keys - queries, dtype=bool)
        return seen


class Layout:
    """The groups of one stream.

    Args:
        groups: in the order of their query rows, which they cover without a gap.
    """

    def __init__(self, groups: Iterable[Group]):
        self.groups = tuple(groups)
        self.rows = self.groups[-1].q1 if self.groups else 0

    @classmethod
    def of_lengths(cls, groups: Sequence[tuple[int, Sequence[int]]]) -> Layout:
        """The layout of a stream whose keys are its own rows (training, or a prompt read at once).

        Args:
            groups: (length of the prefix, 0 if none, and lengths of the branches) per group, in row order: prefix,
                first branch, second branch, …

        Raises:
            ValueError: a negative length, or an empty branch.
        """
        layout, row = [], 0
        for prefix, branches in groups:
            if prefix < 0 or any(length < 1 for length in branches):
                raise ValueError(f"a prefix has 0 or more rows and a branch 1 or more, not {prefix} and {branches}")
            start, p1, segments = row, row + prefix, []
            if prefix:
                segments.append(Segment(start, p1, start, start, start, p1))
            row = p1
            for length in branches:
                segments.append(Segment(row, row + length, start, p1, row, row + length))
                row += length
            if segments:
                layout.append(Group(start, row, start, row, tuple(segments)))
        return cls(layout)

    @classmethod
    def plain(cls, *lengths: int) -> Layout:
        """Separate texts of these lengths, one after another."""
        return cls.of_lengths([(length, ()) for length in lengths])

    def restricted(self, rows: np.ndarray) -> Layout:
        """The same keys with only these query rows, which become rows 0 to len(rows) - 1.

        All groups are kept, also those left without rows: their keys get a gradient of zero.

        Args:
            rows: strictly ascending.

        Raises:
            ValueError: rows that are not strictly ascending, or out of range.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.rows or (np.diff(rows) < 1).any()):
            raise ValueError(f"rows must be ascending and within 0 to {self.rows - 1}, not {rows.tolist()}")
        groups = []
        for group in self.groups:
            segments = [part for segment in group.segments for part in _runs(segment, rows)]
            q0, q1 = np.searchsorted(rows, (group.q0, group.q1)).tolist()
            groups.append(Group(q0, q1, group.k0, group.k1, tuple(segments)))
        return Layout(groups)

    def segments(self) -> np.ndarray:
        """(S, 6) int32: q0, q1, p0, p1, k0, k1 of every segment."""
        return np.array([s for g in self.groups for s in g.segments], np.int32).reshape(-1, 6)


def _runs(segment: Segment, rows: np.ndarray) -> Iterator[Segment]:
    """The runs of consecutive `rows` (ascending) within this segment, renumbered."""
    first, end = np.searchsorted(rows, (segment.q0, segment.q1)).tolist()
    for run in np.split(np.arange(first, end), np.flatnonzero(np.diff(rows[first:end]) > 1) + 1):
        if len(run):
            dropped = segment.q1 - 1 - int(rows[run[-1]])  # its last row sees that many fewer keys than the segment's
            yield Segment(int(run[0]), int(run[-1]) + 1, segment.p0, segment.p1, segment.k0,
                          max(segment.k1 - dropped, segment.k0))
