"""Reading prompts and new tokens of several groups of branches at a time, by the operators of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Sequence

import numpy as np

from jittor_lora.data.layout import Group, Layout, Segment
from jittor_lora.errors import UserError
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.system.runtime import jt


class Turn(NamedTuple):
    """What is read of one group at a time.

    Args:
        group: what a reader's `open` gave.
        prefix: the tokens of its prefix, if they are to be read now, before the branches.
        branches: (which branch of the group, its next tokens, at least one).
    """

    group: Any
    prefix: Sequence[int]
    branches: Sequence[tuple[int, Sequence[int]]]

    def tokens(self) -> list[int]:
        """All that is read, prefix first."""
        return [*self.prefix, *(token for _, tokens in self.branches for token in tokens)]


@dataclass
class _Group:
    cache: Any
    room: int  # of the prefix
    starts: list[int]  # first row of each branch in the cache
    lengths: list[int]  # tokens of each branch that were read
    prefix: int = 0  # tokens of the prefix that were read


class PortableReader:
    """Reads a group after the other through `model.hidden`, on any device."""

    def __init__(self, model: CausalLM):
        self._model = model

    def open(self, prefix: int, rooms: Sequence[int]) -> _Group:
        """Room for a prefix of `prefix` tokens, and `rooms[i]` tokens of branch i."""
        ends = np.cumsum([prefix, *rooms]).tolist()
        return _Group(self._model.new_cache(ends[-1]), prefix, ends[:-1], [0] * len(rooms))

    def fork(self, group: _Group, length: int, rooms: Sequence[int]) -> _Group:
        """A group with room for as long a prefix; of that it has the first `length` tokens that this one has read."""
        made = self.open(group.room, rooms)
        made.cache.copy(group.cache, 0, 0, length)
        made.prefix = length
        return made

    def rewind(self, group: _Group, branch: int, length: int) -> None:
        """Forget all but the first `length` tokens of a branch."""
        group.lengths[branch] = length

    def copy(self, group: _Group, source: int, target: int) -> None:
        """Let a branch have read what another one has; their rooms are equal."""
        group.cache.copy(group.cache, group.starts[source], group.starts[target], group.lengths[source])
        group.lengths[target] = group.lengths[source]

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        """The token with the largest logit after each branch of each turn, (branches,)."""
        return self.logits(turns).argmax(1)

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        """The logits after each branch of each turn, (branches, V) float32.

        Raises:
            UserError: they are not finite.
        """
        with jt.no_grad():
            logits = np.concatenate([self._read(turn) for turn in turns])
        if not np.isfinite(logits).all():
            raise UserError("The model gives numbers that are not finite: weights of the base or of the adapter are "
                            "damaged. Fetch or train them again.")
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
