"""Prompts that are searched each in a reader's group of its own; what they begin with alike is read once and copied."""

from __future__ import annotations

from collections import deque
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.inference.reader import Reader
from jittor_lora.model.causal_lm import CausalLM, check_range


class Prompts(NamedTuple):
    """Prompts that start with the same tokens.

    Args:
        prefix: token ids, may be none.
        prompts: the rest of each prompt, one token or more.
        room: tokens that are read after a prompt, at most.
        about: what the searches are given besides.
    """

    prefix: Sequence[int]
    prompts: Sequence[Sequence[int]]
    room: int
    about: Any = None


class Opened(NamedTuple):
    """A prompt whose search begins.

    Args:
        index: its number among all.
        group: a reader's, with slots for what follows the prompt but for its last token.
        unread: tokens that are still to be read into the group's prefix.
        prompt: all its tokens. The last one is to be read first in each slot.
        about: of its `Prompts`.
    """

    index: int
    group: Any
    unread: Sequence[int]
    prompt: list[int]
    about: Any


class Queue:
    """Opens prompts, as many as there is room for, in the order of their groups as far as possible.

    Args:
        groups: taken as they are needed.
        slots: of each prompt.
    """

    def __init__(self, model: CausalLM, reader: Reader, groups: Iterable[Prompts], slots: int):
        self._reader, self._slots = reader, slots
        self._sources, self._waiting = _sources(model, groups), deque()

    def take(self, most: int) -> list[Opened]:
        """At most so many prompts. What those returned hold unread is read before the next call."""
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
        self.prefix, self.room, self.about = list(given.prefix), given.room, given.about
        self.prompts = deque(enumerate(given.prompts, first))
        self._longest = len(self.prefix) + max(map(len, given.prompts)) - 1
        self._group: Any = None  # the first one, which has read the prefix

    def open(self, reader: Reader, slots: int, most: int) -> list[Opened]:
        made = []
        while self.prompts and len(made) < most:
            index, prompt = self.prompts.popleft()
            rooms, whole = [1 + self.room] * slots, [*self.prefix, *prompt]
            if self._group is None:
                group = self._group = reader.open(self._longest, rooms)
                made.append(Opened(index, group, whole[:-1], whole, self.about))
                break  # the others copy what is not read yet
            group = reader.fork(self._group, len(self.prefix), rooms)
            made.append(Opened(index, group, prompt[:-1], whole, self.about))
        return made


def _sources(model: CausalLM, groups: Iterable[Prompts]) -> Iterator[_Source]:
    first, longest = 0, model.config.max_positions
    for given in groups:
        for prompt in given.prompts:
            length = len(given.prefix) + len(prompt)
            if not len(prompt):
                raise UserError("The prompt is empty; at least one token is needed.")
            if length + given.room > longest:
                raise UserError(f"The prompt has {length} tokens, and {given.room} may follow: more than the model's "
                                f"longest text of {longest}. Shorten it.")
            check_range("token id", np.asarray([*given.prefix, *prompt]), model.config.vocab_size)
        if given.prompts:
            yield _Source(given, first)
        first += len(given.prompts)
