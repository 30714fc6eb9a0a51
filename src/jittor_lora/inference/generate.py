"""Continuing prompts: each is read once, then a token costs a row."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.inference.reader import ROWS, Reader, Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.inference.sampling import Sampler, Sampling
from jittor_lora.model.causal_lm import CausalLM, check_range

GREEDY = Sampling()
TOKENS = 1024  # of prompts that are read at a time


def generate(
    model: CausalLM,
    prefix: Sequence[int],
    branches: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    finished: Callable[[int, list[int]], bool] = lambda branch, new: False,
    on_token: Callable[[int, int], None] = lambda branch, token: None,
    ends: Sequence[int] = (),
) -> list[list[int]]:
    """`generate_groups` for one group: the new tokens of each of its branches."""
    return generate_groups(model, [(prefix, branches)], max_new_tokens, sampling, finished, on_token, ends=ends)


def generate_groups(
    model: CausalLM,
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    finished: Callable[[int, list[int]], bool] = lambda branch, new: False,
    on_token: Callable[[int, int], None] = lambda branch, token: None,
    on_end: Callable[[int], None] = lambda branch: None,
    rows: int = ROWS,
    readers: Sequence[Reader] | None = None,
    ends: Sequence[int] = (),
) -> list[list[int]]:
    """Continue prompts, of which those of a group start with the same tokens; that part is read and kept once.

    Branches of several groups advance together, and where some have finished, the next groups take their place. What
    a branch becomes does not depend on its company: with a temperature each draws from a stream of its own.

    Args:
        groups: (prefix, branches) each: token ids that the prompts of the group start with, which may be none, and
            the rest of each prompt, one token or more. Branches are numbered through all groups.
        max_new_tokens: most tokens to add to each. Fewer are added where the model has no position for more.
        finished: is branch number `branch` done after these new tokens? Then it takes no further step.
        on_token: called with each new token as it is chosen.
        on_end: called when a branch takes no further step.
        rows: most branches that advance at a time.
        readers: the reader of each group, see `readers_of`; by default one for all.
        ends: tokens that end a text, which the sampling's `min_new_tokens` keeps off; `finished` ends it.

    Returns: the new tokens of each branch, including the one it finished with.

    Raises:
        UserError: a prompt that is empty or leaves no room within the model's positions, a token that the model does
            not have, or weights that are damaged.
    """
    readers = list(readers) if readers is not None else [reader_of(model)] * len(groups)
    waiting = deque(_parts(model, groups, readers, max_new_tokens, sampling, rows, ends))
    everything = [branch for part in waiting for branch in part.branches]
    if max_new_tokens < 1 or not waiting:
        return [[] for _ in everything]
    live: list[_Part] = []
    greedy = sampling.plain
    while waiting or live:
        turns = [(part.reader, Turn(part.opened, (), [(b.slot, b.new[-1:]) for b in part.live])) for part in live]
        advancing, tokens = sum(len(part.live) for part in live), 0
        while waiting and (not turns or (advancing + len(waiting[0].branches) <= rows and tokens < TOKENS)):
            part = waiting.popleft()
            part.opened = part.reader.open(len(part.prefix), [branch.room for branch in part.branches])
            turns.append((part.reader, Turn(part.opened, part.prefix, [(b.slot, b.prompt) for b in part.branches])))
            live.append(part)
            advancing, tokens = advancing + len(part.branches), tokens + part.tokens
        results = _read(turns, greedy)
        for part in live:
            read, part.live = part.live, []
            for branch in read:
                token = int(next(results)) if greedy else branch.choose(next(results), part.prefix)
                branch.new.append(token)
                on_token(branch.index, token)
                if len(branch.new) < branch.limit and not finished(branch.index, branch.new):
                    part.live.append(branch)
                else:
                    on_end(branch.index)
        live = [part for part in live if part.live]
    return [branch.new for branch in everything]


def _read(turns: Sequence[tuple[Reader, Turn]], greedy: bool) -> Iterator:
    """The token with the largest logit, or the logits, after each branch of each turn; a reader's turns together."""
    found: dict[int, Iterator] = {}
    for reader, _ in turns:
        if id(reader) not in found:
            own = [turn for other, turn in turns if other is reader]
            found[id(reader)] = iter((reader.likeliest if greedy else reader.logits)(own))
    for reader, turn in turns:
        yield from (next(found[id(reader)]) for _ in turn.branches)


@dataclass
class _Branch:
    """A prompt's own part and what was added to it.

    Attributes:
        index, slot: its number among all branches, and among those of its part.
        limit: most new tokens.
        room: rows that are read of it; the token chosen last never is.
    """

    index: int
    slot: int
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


@dataclass
class _Part:
    """Branches with the same prefix that are read together."""

    reader: Reader
    prefix: Sequence[int]
    branches: list[_Branch]
    live: list[_Branch]
    opened: Any = None

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(len(branch.prompt) for branch in self.branches)


def _parts(model: CausalLM, groups, readers, max_new_tokens: int, sampling: Sampling, rows: int,
           ends: Sequence[int]) -> list[_Part]:
    """The groups, checked, those of more than `rows` branches in several parts."""
    parts, index, longest = [], 0, model.config.max_positions
    for (prefix, prompts), reader in zip(groups, readers):
        branches = []
        for prompt in prompts:
            length = len(prefix) + len(prompt)
            if not len(prompt):
                raise UserError("The prompt is empty; at least one token is needed.")
            if length > longest:
                raise UserError(f"The prompt has {length} tokens, more than the model's longest text of {longest}. "
                                "Shorten it.")
            check_range("token id", np.asarray([*prefix, *prompt]), model.config.vocab_size)
            limit = min(max_new_tokens, longest - length + 1)
            branches.append(_Branch(index, len(branches) % rows, prompt, limit,
                                    Sampler(sampling, index, ends)))
            index += 1
        for first in range(0, len(branches), rows):
            some = branches[first : first + rows]
            parts.append(_Part(reader, prefix, some, list(some)))
    return parts
