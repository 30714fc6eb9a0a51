"""Continuations of prompts that share a prefix, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.inference.reader import Reader, Turn
from jittor_lora.inference.sampling import Sampler
from jittor_lora.inference.steps import EVERY_ROW, LOGITS, TOKENS
from jittor_lora.model.causal_lm import check_range
from jittor_lora.model.config import ModelConfig

SCORED_ROWS = 128  # whose logits (V,) are held at a time


@dataclass(eq=False)
class Branch:
    """A prompt after the shared prefix, and its new tokens.

    Attributes:
        index: its number among all texts.
        limit: most new tokens.
        room: rows it occupies in the cache; the last new token is never read.
    """

    index: int
    prompt: Sequence[int]
    limit: int
    sampler: Sampler
    new: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        return len(self.prompt) + self.limit - 1

    def choose(self, logits: np.ndarray, prefix: Sequence[int]) -> int:
        seen = [*prefix, *self.prompt] if self.sampler.settings.constrains else ()
        return self.sampler.choose(logits, seen, self.new)


class Texts:
    """Branches of one prefix that are read together, a `Work`. All have the same sampling settings.

    Args:
        chosen: called as chosen(branch, token, logits) for each new token, which is in `branch.new` by then; True ends
            the branch. The logits (V,) are None unless `by_logits`, or something else needs them.
        ended: called as ended(branch, whether `chosen` ended it rather than its limit).
        first: called as first(branch, logits (V,)) before a branch's first token is chosen; it may change them.
        by_logits: always ask for logits.
        scored: called as scored(number, logits (n, V)) for the logits after n tokens of the prefix, from a number on,
            as it is read.

    Attributes:
        live: the branches that are not complete.
    """

    def __init__(self, reader: Reader, prefix: Sequence[int], branches: Sequence[Branch],
                 chosen: Callable[[Branch, int, Optional[np.ndarray]], bool],
                 ended: Callable[[Branch, bool], None] = lambda branch, finished: None,
                 first: Optional[Callable[[Branch, np.ndarray], None]] = None, by_logits: bool = False,
                 scored: Optional[Callable[[int, np.ndarray], None]] = None):
        self.reader, self.prefix, self.branches = reader, prefix, list(branches)
        self.live, self.read, self.group = list(branches), 0, None
        self._chosen, self._ended, self._first, self._scored = chosen, ended, first, scored
        self._by_logits = by_logits or not branches[0].sampler.settings.plain
        self._slots = {branch.index: slot for slot, branch in enumerate(branches)}
        self._begun, self._turn, self._wanted = False, [], TOKENS

    @property
    def rooms(self) -> list[int]:
        """Rows of the cache for each branch."""
        return [branch.room for branch in self.branches]

    @property
    def unread(self) -> int:
        prompts = 0 if self._begun else sum(len(branch.prompt) for branch in self.branches)
        return len(self.prefix) - self.read + prompts

    @property
    def reads_all(self) -> bool:
        return self._scored is not None

    @property
    def advancing(self) -> int:
        return len(self.live)

    @property
    def complete(self) -> bool:
        return not self.live

    def open(self, group: Any = None, read: int = 0) -> None:
        """See `Work`."""
        self.group = self.reader.open(len(self.prefix), self.rooms) if group is None else group
        self.read = read

    def turn(self, room: int) -> tuple[Turn, str]:
        left = len(self.prefix) - self.read
        if left and self._scored:
            return self._read_prefix(min(left, room, SCORED_ROWS)), EVERY_ROW
        if left > max(room, 0):
            return self._read_prefix(room), TOKENS
        tokens, self.read = self.prefix[self.read :], len(self.prefix)
        self._turn, self._wanted = list(self.live), TOKENS
        if self._by_logits or self._first and not self._begun:
            self._wanted = LOGITS
        turn = Turn(self.group, tokens, [(self._slots[branch.index], branch.new[-1:] or branch.prompt)
                                         for branch in self._turn])
        self._begun = True
        return turn, self._wanted

    def take(self, results: Iterator[Any]) -> None:
        if self._wanted == EVERY_ROW:
            logits = next(results)
            self._scored(self.read - len(logits), logits)
        read, self._turn = self._turn, []
        for branch in read:
            found = next(results)
            logits = found if self._wanted == LOGITS else None
            if logits is not None and self._first is not None and not branch.new:
                self._first(branch, logits)
            token = int(found) if logits is None else branch.choose(logits, self.prefix)
            branch.new.append(token)
            finished = self._chosen(branch, token, logits)
            if finished or len(branch.new) >= branch.limit:
                self.live.remove(branch)
                self._ended(branch, finished)

    def _read_prefix(self, count: int) -> Turn:
        turn = Turn(self.group, self.prefix[self.read : self.read + count], ())
        self.read += count
        self._turn, self._wanted = [], EVERY_ROW if self._scored else TOKENS
        return turn


def limit_of(config: ModelConfig, prefix: Sequence[int], prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens may follow a prompt: fewer than `max_new_tokens` where the model runs out of positions.

    Raises:
        UserError: the prompt is empty or exceeds the model's positions, or a token is outside the vocabulary.
    """
    length, longest = len(prefix) + len(prompt), config.max_positions
    if not len(prompt):
        raise UserError("The prompt is empty; it needs at least one token.")
    if length > longest:
        raise UserError(f"The prompt has {length} tokens; the model takes at most {longest}. Shorten it.")
    check_range("token id", np.asarray([*prefix, *prompt]), config.vocab_size)
    return min(max_new_tokens, longest - length + 1)
