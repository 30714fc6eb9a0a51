"""A reader that reads group by group through the network's operators, on any device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Sequence

import numpy as np

from jittor_lora.data.layout import Group, Layout, Segment
from jittor_lora.errors import UserError
from jittor_lora.inference.reader import Turn
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.ops.decoding import NOT_FINITE
from jittor_lora.system.runtime import jt


@dataclass
class _Group:
    cache: Any
    room: int  # for the prefix
    starts: list[int]  # first row of each branch in the cache
    lengths: list[int]  # tokens read of each branch
    prefix: int = 0  # tokens read of the prefix


class PortableReader:
    """Reads one group after the other through `model.hidden`; see `Reader`.

    Args:
        acting: a context for each run of the model, which chooses the adapters.
    """

    block_rows = 16

    def __init__(self, model: CausalLM, acting: Callable[[], ContextManager] = nullcontext):
        self._model, self._acting, c = model, acting, model.config
        self.base = id(self)
        self.row_bytes = 8 * c.layers * c.kv_heads * c.head_dim

    def open(self, prefix: int, rooms: Sequence[int]) -> _Group:
        ends = np.cumsum([prefix, *rooms]).tolist()
        return _Group(self._model.new_cache(ends[-1]), prefix, ends[:-1], [0] * len(rooms))

    def fork(self, group: _Group, length: int, rooms: Sequence[int]) -> _Group:
        made = self.open(group.room, rooms)
        made.cache.copy(group.cache, 0, 0, length)
        made.prefix = length
        return made

    def join(self, group: _Group, rooms: Sequence[int]) -> _Group:
        return self.fork(group, group.prefix, rooms)

    def rewind(self, group: _Group, branch: int, length: int) -> None:
        group.lengths[branch] = length

    def copy(self, group: _Group, source: int, target: int) -> None:
        group.cache.copy(group.cache, group.starts[source], group.starts[target], group.lengths[source])
        group.lengths[target] = group.lengths[source]

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        return self.logits(turns).argmax(1)

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        with self._acting(), jt.no_grad(), self._model.products():
            return _finite(np.concatenate([self._read(turn)[: len(turn.branches)] for turn in turns]))

    def every_row(self, group: _Group, tokens: Sequence[int]) -> np.ndarray:
        with self._acting(), jt.no_grad(), self._model.products():
            return _finite(self._read(Turn(group, tokens, ()), every_row=True))

    def block(self, group: _Group, number: int) -> np.ndarray:
        return group.cache.rows(number * self.block_rows, self.block_rows)

    def restore(self, group: _Group, blocks: Sequence[np.ndarray], length: int) -> None:
        for number, block in enumerate(blocks):
            group.cache.put(number * self.block_rows, block[:, :, : length - number * self.block_rows])
        group.prefix = length

    def _read(self, turn: Turn, every_row: bool = False) -> np.ndarray:
        """The logits after each branch, after each row, or if there is no branch, after the last row."""
        group, row = turn.group, len(turn.prefix)
        segments = [Segment(0, row, 0, 0, 0, group.prefix + row)] if row else []
        positions, wanted = list(range(group.prefix, group.prefix + row)), []
        cache_rows = list(positions)
        group.prefix += row
        for branch, tokens in turn.branches:
            start, read = group.starts[branch], group.lengths[branch]
            group.lengths[branch] += len(tokens)
            segments.append(Segment(row, row + len(tokens), 0, group.prefix, start, start + group.lengths[branch]))
            positions += range(group.prefix + read, group.prefix + group.lengths[branch])
            cache_rows += range(start + read, start + group.lengths[branch])
            row += len(tokens)
            wanted.append(row - 1)
        if every_row or not wanted:
            wanted = list(range(row)) if every_row else [row - 1]
        layout = Layout([Group(0, row, 0, group.cache.capacity, tuple(segments))])
        hidden = self._model.hidden(np.asarray(turn.tokens(), np.int32), np.asarray(positions, np.int32), layout,
                                    np.asarray(wanted, np.int32), group.cache, np.asarray(cache_rows, np.int32))
        return self._model.logits(hidden).numpy()


def _finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise UserError(NOT_FINITE)
    return logits
