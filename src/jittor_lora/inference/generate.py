"""Token-by-token generation for many prompts at once: a prompt is read once, then each new token costs one row."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.inference.reader import BATCH_SIZE, Reader, Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.inference.sampling import GREEDY, Sampler, Sampling
from jittor_lora.model.causal_lm import CausalLM, check_range

MAX_PROMPT_TOKENS = 1024  # read in one step


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
    """`generate_groups` for one group; returns the new tokens of each branch."""
    return generate_groups(model, [(prefix, branches)], max_new_tokens, sampling, finished, on_token, ends=ends)


def generate_groups(
    model: CausalLM,
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    finished: Callable[[int, list[int]], bool] = lambda branch, new: False,
    on_token: Callable[[int, int], None] = lambda branch, token: None,
    on_end: Callable[[int], None] = lambda branch: None,
    batch_size: int = BATCH_SIZE,
    readers: Sequence[Reader] | None = None,
    ends: Sequence[int] = (),
    on_first: Callable[[int, np.ndarray], None] | None = None,
) -> list[list[int]]:
    """Continue prompts. The prompts of a group share a prefix, which is read and cached once.

    Branches of several groups advance together; as some finish, the next groups take their place. The result for a
    branch is independent of the rest of the batch: when sampling, each branch has its own random stream.

    Args:
        groups: (prefix, branches) pairs of token ids: the common prefix of the group's prompts, possibly empty, and the
            rest of each prompt, at least one token. Branches are numbered across all groups.
        max_new_tokens: per branch; fewer where the model runs out of positions.
        finished: called as finished(branch, new tokens) after each token; True ends the branch.
        on_token: called as on_token(branch, token) for each new token.
        on_end: called with the number of a branch that has ended.
        batch_size: most branches that advance together.
        readers: the reader of each group (see `reader_of`); by default one for all.
        on_first: called as on_first(branch, logits (V,)) before a branch's first token is chosen; it may change them.
        ends: end tokens, which `sampling.min_new_tokens` holds off; ending the branch is up to `finished`.

    Returns: the new tokens of each branch, including the one it finished with.

    Raises:
        UserError: an empty prompt or one that exceeds the model's positions, a token outside the vocabulary, or
            damaged weights.
    """
    readers = list(readers) if readers is not None else [reader_of(model)] * len(groups)
    waiting = deque(_parts(model, groups, readers, max_new_tokens, sampling, batch_size, ends))
    everything = [branch for part in waiting for branch in part.branches]
    if max_new_tokens < 1 or not waiting:
        return [[] for _ in everything]
    live: list[_Part] = []
    greedy = sampling.plain
    while waiting or live:
        turns = [(part.reader, Turn(part.opened, (), [(b.slot, b.new[-1:]) for b in part.live])) for part in live]
        advancing, tokens = sum(len(part.live) for part in live), 0
        while waiting and (not turns or (advancing + len(waiting[0].branches) <= batch_size
                                         and tokens < MAX_PROMPT_TOKENS)):
            part = waiting.popleft()
            part.opened = part.reader.open(len(part.prefix), [branch.room for branch in part.branches])
            turns.append((part.reader, Turn(part.opened, part.prefix, [(b.slot, b.prompt) for b in part.branches])))
            live.append(part)
            advancing, tokens = advancing + len(part.branches), tokens + part.tokens
        by_logits = [not greedy or on_first is not None and not part.live[0].new for part in live]
        results = _read(turns, by_logits)
        for part, has_logits in zip(live, by_logits):
            read, part.live = part.live, []
            for branch in read:
                found = next(results)
                if has_logits and on_first is not None and not branch.new:
                    on_first(branch.index, found)
                token = branch.choose(found, part.prefix) if has_logits else int(found)
                branch.new.append(token)
                on_token(branch.index, token)
                if len(branch.new) < branch.limit and not finished(branch.index, branch.new):
                    part.live.append(branch)
                else:
                    on_end(branch.index)
        live = [part for part in live if part.live]
    return [branch.new for branch in everything]


def _read(turns: Sequence[tuple[Reader, Turn]], by_logits: Sequence[bool]) -> Iterator:
    """The argmax token, or the logits, after each branch of each turn; each reader takes all turns of a kind in one
    call."""
    found: dict[tuple[int, bool], Iterator] = {}
    kinds = [(id(reader), logits) for (reader, _), logits in zip(turns, by_logits)]
    for kind, (reader, _) in zip(kinds, turns):
        if kind not in found:
            own = [turn for other, (_, turn) in zip(kinds, turns) if other == kind]
            found[kind] = iter((reader.logits if kind[1] else reader.likeliest)(own))
    for kind, (_, turn) in zip(kinds, turns):
        yield from (next(found[kind]) for _ in turn.branches)


@dataclass
class _Branch:
    """A prompt after the shared prefix, and its new tokens.

    Attributes:
        index, slot: its number among all branches, and within its part.
        limit: most new tokens.
        room: rows it occupies in the cache; the last new token is never read.
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
    """Branches of one prefix that are read together."""

    reader: Reader
    prefix: Sequence[int]
    branches: list[_Branch]
    live: list[_Branch]
    opened: Any = None

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(len(branch.prompt) for branch in self.branches)


def _parts(model: CausalLM, groups, readers, max_new_tokens: int, sampling: Sampling, batch_size: int,
           ends: Sequence[int]) -> list[_Part]:
    """Check the groups, and split those of more than `batch_size` branches into several parts."""
    parts, index, longest = [], 0, model.config.max_positions
    for (prefix, prompts), reader in zip(groups, readers):
        branches = []
        for prompt in prompts:
            length = len(prefix) + len(prompt)
            if not len(prompt):
                raise UserError("The prompt is empty; it needs at least one token.")
            if length > longest:
                raise UserError(f"The prompt has {length} tokens; the model takes at most {longest}. Shorten it.")
            check_range("token id", np.asarray([*prefix, *prompt]), model.config.vocab_size)
            limit = min(max_new_tokens, longest - length + 1)
            branches.append(_Branch(index, len(branches) % batch_size, prompt, limit,
                                    Sampler(sampling, index, ends)))
            index += 1
        for first in range(0, len(branches), batch_size):
            some = branches[first : first + batch_size]
            parts.append(_Part(reader, prefix, some, list(some)))
    return parts
