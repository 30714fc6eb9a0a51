"""Keys and values of prefixes that come again: a context, the turn of a system, earlier turns.

They are kept in blocks of some tokens, in a tree: a block's keys and values depend on all tokens before it. When they
take more than a stated size, blocks without one after them go, the least recently used first.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Sequence
from typing import Any, Optional

import numpy as np

from jittor_lora.inference.reader import Reader

OVERHEAD = 1024  # bytes that a block takes besides its keys and values


class _Block:
    """Keys and values of the tokens after its parent's, `block_rows` of them unless it is a leaf."""

    __slots__ = ("tokens", "rows", "parent", "children", "used")

    def __init__(self, tokens: tuple[int, ...], rows: Optional[np.ndarray], parent: Optional[_Block]):
        self.tokens, self.rows, self.parent = tokens, rows, parent
        self.children: dict[int, list[_Block]] = {}  # by their first token
        self.used = 0


class PrefixCache:
    """
    Args:
        limit: bytes.

    Attributes:
        size: bytes in use.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self._roots: dict[Hashable, _Block] = {}
        self._clock = itertools.count(1)
        self._leaves: list[tuple[int, int, _Block]] = []  # a heap of (last use, number, block); some are out of date
        self._number = itertools.count()
        self._blocks = 0

    def length(self, owner: Hashable, tokens: Sequence[int]) -> int:
        """How many first tokens of a prefix are known.

        Args:
            owner: whose keys and values: those of another adapter are others.
        """
        return self._find(owner, tokens)[1]

    def fetch(self, owner: Hashable, tokens: Sequence[int], reader: Reader, group: Any) -> int:
        """Let a new group have read the tokens of a prefix that are known; returns their number."""
        blocks, length = self._find(owner, tokens)
        if length:
            reader.restore(group, [block.rows for block in blocks], length)
            self._use(blocks)
        return length

    def store(self, owner: Hashable, tokens: Sequence[int], reader: Reader, group: Any) -> None:
        """Keep what a group has read of its prefix: these tokens."""
        size = reader.block_rows
        if size * reader.row_bytes + OVERHEAD > self.limit:
            return
        block, path = self._roots.setdefault(owner, _Block((), None, None)), []
        for start in range(0, len(tokens), size):
            part = tuple(tokens[start : start + size])
            others = block.children.setdefault(part[0], [])
            known = next((child for child in others if child.tokens[: len(part)] == part), None)
            if known is None:
                for child in others:
                    if part[: len(child.tokens)] == child.tokens:  # its beginning: a leaf, as it is shorter
                        self._remove(child)
                others = block.children.setdefault(part[0], [])
                known = _Block(part, reader.block(group, start // size), block)
                others.append(known)
                self.size += known.rows.nbytes + OVERHEAD
                self._blocks += 1
            block = known
            path.append(block)
        if path:
            self._use(path)
        self._shrink()

    def forget(self, owner: Hashable) -> None:
        """Drop everything of an owner."""
        waiting = [self._roots.pop(owner)] if owner in self._roots else []
        while waiting:
            block = waiting.pop()
            waiting += itertools.chain.from_iterable(block.children.values())
            if block.rows is not None:
                self._drop(block)

    def _find(self, owner: Hashable, tokens: Sequence[int]) -> tuple[list[_Block], int]:
        """The blocks that hold the longest known beginning, and its length; the last block may hold more."""
        block, blocks, length = self._roots.get(owner), [], 0
        while block is not None and length < len(tokens):
            best, shared = None, 0
            for child in block.children.get(tokens[length], ()):
                same = _common(child.tokens, tokens, length)
                if same > shared:
                    best, shared = child, same
            if best is None:
                break
            blocks.append(best)
            length += shared
            if shared < len(best.tokens):
                break
            block = best
        return blocks, length

    def _use(self, path: Sequence[_Block]) -> None:
        now = next(self._clock)
        for block in path:
            block.used = now
        self._push(path[-1])
        if len(self._leaves) > 64 + 4 * self._blocks:
            self._leaves = [entry for entry in self._leaves if entry[0] == entry[2].used and entry[2].rows is not None]
            heapq.heapify(self._leaves)

    def _shrink(self) -> None:
        while self.size > self.limit and self._leaves:
            used, _, block = heapq.heappop(self._leaves)
            if block.rows is None or block.children:  # removed, or no leaf
                continue
            if used != block.used:  # used since, as the beginning of another
                self._push(block)
                continue
            self._remove(block)

    def _remove(self, block: _Block) -> None:
        parent = block.parent
        others = parent.children[block.tokens[0]]
        others.remove(block)
        if not others:
            del parent.children[block.tokens[0]]
        self._drop(block)
        if not parent.children and parent.rows is not None:
            self._push(parent)

    def _push(self, block: _Block) -> None:
        heapq.heappush(self._leaves, (block.used, next(self._number), block))

    def _drop(self, block: _Block) -> None:
        self.size -= block.rows.nbytes + OVERHEAD
        self._blocks -= 1
        block.rows, block.children = None, {}


def _common(tokens: Sequence[int], text: Sequence[int], start: int) -> int:
    """How many of `tokens` are those of `text` from `start` on."""
    most = min(len(tokens), len(text) - start)
    return next((i for i in range(most) if tokens[i] != text[start + i]), most)
