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

    def __init__(self, model: CausalLM, acting: Callable[[], ContextManager] = nullcontext):
        self._model, self._acting = model, acting

    def open(self, prefix: int, rooms: Sequence[int]) -> _Group:
        ends = np.cumsum([prefix, *rooms]).tolist()
        return _Group(self._model.new_cache(ends[-1]), prefix, ends[:-1], [0] * len(rooms))

    def fork(self, group: _Group, length: int, rooms: Sequence[int]) -> _Group:
        made = self.open(group.room, rooms)
        made.cache.copy(group.cache, 0, 0, length)
        made.prefix = length
        return made

    def rewind(self, group: _Group, branch: int, length: int) -> None:
        group.lengths[branch] = length

    def copy(self, group: _Group, source: int, target: int) -> None:
        group.cache.copy(group.cache, group.starts[source], group.starts[target], group.lengths[source])
        group.lengths[target] = group.lengths[source]

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        return self.logits(turns).argmax(1)

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        with self._acting(), jt.no_grad():
            logits = np.concatenate([self._read(turn) for turn in turns])
        if not np.isfinite(logits).all():
            raise UserError(NOT_FINITE)
        return logits

    def _read(self, turn: Turn) -> np.ndarray:
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
        layout = Layout([Group(0, row, 0, group.cache.capacity, tuple(segments))])
        hidden = self._model.hidden(np.asarray(turn.tokens(), np.int32), np.asarray(positions, np.int32), layout,
                                    np.asarray(wanted, np.int32), group.cache, np.asarray(cache_rows, np.int32))
        return self._model.logits(hidden).numpy()
