"""A reader that reads all turns in one pass of the network's operators, on any device."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Callable, ContextManager, Sequence

import numpy as np

from jittor_lora.data.layout import Group, Layout, Segment
from jittor_lora.errors import UserError
from jittor_lora.inference.reader import Turn
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.ops.decoding import NOT_FINITE
from jittor_lora.system.runtime import jt


@dataclass(eq=False)
class _Group:
    start: int  # first row in the cache
    room: int  # for the prefix
    starts: list[int]  # first row of each branch in the cache
    lengths: list[int]  # tokens read of each branch
    prefix: int = 0  # tokens read of the prefix


class PortableReader:
    """Reads through `model.hidden`; see `Reader`. Each group has rows of one cache.

    Args:
        acting: a context for each run of the model, which chooses the adapters.
    """

    block_rows = 16

    def __init__(self, model: CausalLM, acting: Callable[[], ContextManager] = nullcontext):
        self._model, self._acting, c = model, acting, model.config
        self.base = id(self)
        self.row_bytes = 8 * c.layers * c.kv_heads * c.head_dim
        self._cache = model.new_cache(0)
        self._taken: list[tuple[int, int]] = []  # each group's rows of the cache, ascending

    def open(self, prefix: int, rooms: Sequence[int]) -> _Group:
        *ends, rows = np.cumsum([prefix, *rooms]).tolist()
        start = self._free(rows)
        group = _Group(start, prefix, [start + end for end in ends], [0] * len(rooms))
        taken = start, start + rows
        self._taken = sorted([*self._taken, taken])
        weakref.finalize(group, self._give_back, taken)
        return group

    def _free(self, count: int) -> int:
        """The first of `count` free rows of the cache, which grows where it must."""
        free = zip([0, *(end for _, end in self._taken)], [*(start for start, _ in self._taken), np.inf])
        start = next(start for start, end in free if end - start >= count)
        if start + count > self._cache.capacity:
            larger = self._model.new_cache(max(start + count, 2 * self._cache.capacity))
            larger.copy(self._cache, 0, 0, self._cache.capacity)
            self._cache = larger
        return start

    def _give_back(self, taken: tuple[int, int]) -> None:
        self._taken.remove(taken)
        if not self._taken:
            self._cache = self._model.new_cache(0)

    def fork(self, group: _Group, length: int, rooms: Sequence[int]) -> _Group:
        made = self.open(group.room, rooms)
        self._copy(group.start, made.start, length)
        made.prefix = length
        return made

    def join(self, group: _Group, rooms: Sequence[int]) -> _Group:
        return self.fork(group, group.prefix, rooms)

    def rewind(self, group: _Group, branch: int, length: int) -> None:
        group.lengths[branch] = length

    def copy(self, group: _Group, source: int, target: int) -> None:
        self._copy(group.starts[source], group.starts[target], group.lengths[source])
        group.lengths[target] = group.lengths[source]

    def _copy(self, source: int, target: int, count: int) -> None:
        self._cache.copy(self._cache, source, target, count)

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        return self.logits(turns).argmax(1)

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        return self._read(turns)

    def every_row(self, group: _Group, tokens: Sequence[int]) -> np.ndarray:
        return self._read([Turn(group, tokens, ())], every_row=True)

    def block(self, group: _Group, number: int) -> np.ndarray:
        return self._cache.rows(group.start + number * self.block_rows, self.block_rows)

    def restore(self, group: _Group, blocks: Sequence[np.ndarray], length: int) -> None:
        for number, block in enumerate(blocks):
            first = number * self.block_rows
            self._cache.put(group.start + first, block[:, :, : length - first])
        group.prefix = length

    def _read(self, turns: Sequence[Turn], every_row: bool = False) -> np.ndarray:
        """The logits after each branch of each turn, or after each row."""
        rows = _Rows()
        for turn in turns:
            rows.add(turn)
        wanted = list(range(len(rows.tokens))) if every_row else rows.ends
        tokens, positions, cache_rows = (np.asarray(values, np.int32)
                                         for values in (rows.tokens, rows.positions, rows.cache_rows))
        with self._acting(), jt.no_grad(), self._model.products():
            hidden = self._model.hidden(tokens, positions, Layout(rows.groups),
                                        np.asarray(wanted or [len(tokens) - 1], np.int32), self._cache, cache_rows)
            logits = self._model.logits(hidden).numpy()[: len(wanted)]
        if not np.isfinite(logits).all():
            raise UserError(NOT_FINITE)
        return logits


@dataclass
class _Rows:
    """The rows of a pass.

    Attributes:
        ends: the last row of each branch.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    cache_rows: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, turn: Turn) -> None:
        group, first, segments = turn.group, len(self.tokens), []
        if turn.prefix:
            segments.append(self._segment(turn.prefix, group.start, group.prefix, group.start, group.start))
            group.prefix += len(turn.prefix)
        for branch, tokens in turn.branches:
            segments.append(self._segment(tokens, group.starts[branch], group.lengths[branch], group.start,
                                          group.start + group.prefix))
            group.lengths[branch] += len(tokens)
            self.ends.append(len(self.tokens) - 1)
        self.groups.append(Group(first, len(self.tokens), group.start, max(s.k1 for s in segments), tuple(segments)))

    def _segment(self, tokens: Sequence[int], start: int, read: int, p0: int, p1: int) -> Segment:
        """Tokens after `read` others, which are in the cache from row `start` on; all see its rows from p0 to p1."""
        first, end = start + read, start + read + len(tokens)
        self.tokens += tokens
        self.positions += range(p1 - p0 + read, p1 - p0 + read + len(tokens))
        self.cache_rows += range(first, end)
        return Segment(len(self.tokens) - len(tokens), len(self.tokens), p0, p1, start, end)
