"""The attention mask of a token stream, as intervals.

A stream is a flat list of N tokens. A layout divides it into *groups*: a shared prefix followed by its branches. Prefix
rows attend causally within the prefix; a branch row attends to the whole prefix and, causally, to its own branch, never
to another branch or group. Plain text is a prefix without branches.

Keys may also come from a key-value cache, so a layout is stored in general form, as segments: an interval of query
rows, the interval of key rows that all of them see (the prefix), and the interval they see causally (their own),
aligned at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, NamedTuple, Sequence

import numpy as np


class Segment(NamedTuple):
    """Query rows [q0, q1) see all key rows [p0, p1); of [k0, k1), query `q1 - 1 - i` sees all but the last i."""

    q0: int
    q1: int
    p0: int
    p1: int
    k0: int
    k1: int


@dataclass(frozen=True)
class Group:
    """Segments that share keys: query rows [q0, q1), possibly empty, see only key rows within [k0, k1)."""

    q0: int
    q1: int
    k0: int
    k1: int
    segments: tuple[Segment, ...]

    def mask(self) -> np.ndarray:
        """(q1 - q0, k1 - k0) bool, true where a query row sees a key row."""
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
        groups: in the order of their query rows, without gaps.
    """

    def __init__(self, groups: Iterable[Group]):
        self.groups = tuple(groups)
        self.rows = self.groups[-1].q1 if self.groups else 0

    @classmethod
    def of_lengths(cls, groups: Sequence[tuple[int, Sequence[int]]]) -> Layout:
        """The layout of a stream that attends to itself (training, or a prompt read in one pass).

        Args:
            groups: the length of each group's prefix (0 for none) and of its branches, in row order: prefix, first
                branch, second branch, …

        Raises:
            ValueError: a negative length, or an empty branch.
        """
        made, row = [], 0
        for prefix, branches in groups:
            if prefix < 0 or any(length < 1 for length in branches):
                raise ValueError("expected a prefix of 0 or more rows and branches of 1 or more, found "
                                 f"{prefix} and {branches}")
            start, p1, segments = row, row + prefix, []
            if prefix:
                segments.append(Segment(start, p1, start, start, start, p1))
            row = p1
            for length in branches:
                segments.append(Segment(row, row + length, start, p1, row, row + length))
                row += length
            if segments:
                made.append(Group(start, row, start, row, tuple(segments)))
        return cls(made)

    @classmethod
    def plain(cls, *lengths: int) -> Layout:
        """Independent texts of these lengths, one after the other."""
        return cls.of_lengths([(length, ()) for length in lengths])

    def restricted(self, rows: np.ndarray) -> Layout:
        """The layout of these query rows only, renumbered from 0; the keys stay.

        A group without any of the rows stays too, as its keys get a zero gradient.

        Args:
            rows: strictly ascending.

        Raises:
            ValueError: rows out of order or out of range.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.rows or (np.diff(rows) < 1).any()):
            raise ValueError(f"expected ascending rows from 0 to {self.rows - 1}, found {rows.tolist()}")
        made = []
        for group in self.groups:
            segments = [part for segment in group.segments for part in _runs(segment, rows)]
            q0, q1 = np.searchsorted(rows, (group.q0, group.q1)).tolist()
            made.append(Group(q0, q1, group.k0, group.k1, tuple(segments)))
        return Layout(made)

    def seen(self) -> np.ndarray:
        """(N, 4) int32: for each query row p0, p1, k0, k1: it sees key rows [p0, p1) and [k0, k1)."""
        q0, q1, p0, p1, k0, k1 = self.segments().T
        of_row = np.repeat(np.arange(len(q0)), q1 - q0)
        dropped = q1[of_row] - 1 - np.arange(len(of_row), dtype=np.int32)
        return np.stack([p0[of_row], p1[of_row], k0[of_row], np.maximum(k1[of_row] - dropped, k0[of_row])], 1)

    def segments(self) -> np.ndarray:
        """(S, 6) int32: q0, q1, p0, p1, k0, k1 of every segment."""
        return np.array([s for g in self.groups for s in g.segments], np.int32).reshape(-1, 6)


def _runs(segment: Segment, rows: np.ndarray) -> Iterator[Segment]:
    """The runs of consecutive rows (ascending) that lie in this segment, renumbered."""
    first, end = np.searchsorted(rows, (segment.q0, segment.q1)).tolist()
    for run in np.split(np.arange(first, end), np.flatnonzero(np.diff(rows[first:end]) > 1) + 1):
        if len(run):
            dropped = segment.q1 - 1 - int(rows[run[-1]])  # keys that the run's last row does not see
            yield Segment(int(run[0]), int(run[-1]) + 1, segment.p0, segment.p1, segment.k0,
                          max(segment.k1 - dropped, segment.k0))
