"""Searches (beam, span) need one group of the reader per prompt; a common prefix is read once and copied."""

from __future__ import annotations

from collections import deque
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.inference.reader import Reader
from jittor_lora.model.causal_lm import CausalLM, check_range


class Prompts(NamedTuple):
    """Prompts with a common prefix.

    Args:
        prefix: token ids, may be empty.
        prompts: the rest of each prompt, at least one token.
        room: most tokens read after a prompt.
        payload: handed through to the searches.
    """

    prefix: Sequence[int]
    prompts: Sequence[Sequence[int]]
    room: int
    payload: Any = None


class Opened(NamedTuple):
    """A prompt that is ready to be searched.

    Args:
        index: its number among all prompts.
        group: of the reader; each slot continues the prompt from its last token on.
        unread: tokens still to be read into the group's prefix.
        prompt: all its tokens; the last one is read first in each slot.
        payload: of its `Prompts`.
    """

    index: int
    group: Any
    unread: Sequence[int]
    prompt: list[int]
    payload: Any


class Queue:
    """Opens prompts as room becomes free, in the order of their groups as far as possible.

    Args:
        groups: consumed lazily.
        slots: per prompt.
    """

    def __init__(self, model: CausalLM, reader: Reader, groups: Iterable[Prompts], slots: int):
        self._reader, self._slots = reader, slots
        self._sources, self._waiting = _sources(model, groups), deque()

    def take(self, most: int) -> list[Opened]:
        """Up to `most` prompts. Their unread tokens must be read before the next call."""
        made: list[Opened] = []
        for source in self._waiting:
            made += source.open(self._reader, self._slots, most - len(made))
        while len(made) < most:
            source = next(self._sources, None)
            if source is None:
                break
            self._waiting.append(source)
            made += source.open(self._reader, self._slots, 1)
        self._waiting = deque(source for source in self._waiting if source.prompts)
        return made


class _Source:
    def __init__(self, given: Prompts, first: int):
        self.prefix, self.room, self.payload = list(given.prefix), given.room, given.payload
        self.prompts = deque(enumerate(given.prompts, first))
        self._longest = len(self.prefix) + max(map(len, given.prompts)) - 1
        self._group: Any = None  # the first prompt's, which has read the prefix

    def open(self, reader: Reader, slots: int, most: int) -> list[Opened]:
        made = []
        while self.prompts and len(made) < most:
            index, prompt = self.prompts.popleft()
            rooms, whole = [1 + self.room] * slots, [*self.prefix, *prompt]
            if self._group is None:
                group = self._group = reader.open(self._longest, rooms)
                made.append(Opened(index, group, whole[:-1], whole, self.payload))
                break  # the others copy the prefix once it has been read
            group = reader.fork(self._group, len(self.prefix), rooms)
            made.append(Opened(index, group, prompt[:-1], whole, self.payload))
        return made


def _sources(model: CausalLM, groups: Iterable[Prompts]) -> Iterator[_Source]:
    first, longest = 0, model.config.max_positions
    for given in groups:
        for prompt in given.prompts:
            length = len(given.prefix) + len(prompt)
            if not len(prompt):
                raise UserError("The prompt is empty; it needs at least one token.")
            if length + given.room > longest:
                raise UserError(f"The prompt has {length} tokens and up to {given.room} may follow; the model takes "
                                f"at most {longest}. Shorten it.")
            check_range("token id", np.asarray([*given.prefix, *prompt]), model.config.vocab_size)
        if given.prompts:
            yield _Source(given, first)
        first += len(given.prompts)
