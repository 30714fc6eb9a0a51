"""Token-by-token generation for many prompts at once: a prompt is read once, then each new token costs one row."""

from __future__ import annotations

from collections import deque
from typing import Callable, Optional, Sequence

import numpy as np

from jittor_lora.inference.reader import BATCH_SIZE, Reader
from jittor_lora.inference.readers import reader_of
from jittor_lora.inference.sampling import GREEDY, Sampler, Sampling
from jittor_lora.inference.steps import advance
from jittor_lora.inference.texts import Branch, Texts, limit_of
from jittor_lora.model.causal_lm import CausalLM

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
    everything: list[Branch] = []
    waiting: deque[Texts] = deque()

    def chosen(branch: Branch, token: int, logits: Optional[np.ndarray]) -> bool:
        on_token(branch.index, token)
        return finished(branch.index, branch.new)

    def first(branch: Branch, logits: np.ndarray) -> None:
        on_first(branch.index, logits)

    for (prefix, prompts), reader in zip(groups, readers):
        branches = [Branch(index, prompt, limit_of(model.config, prefix, prompt, max_new_tokens),
                           Sampler(sampling, index, ends)) for index, prompt in enumerate(prompts, len(everything))]
        everything += branches
        for start in range(0, len(branches), batch_size):
            waiting.append(Texts(reader, prefix, branches[start : start + batch_size], chosen,
                                 lambda branch, _: on_end(branch.index), first if on_first else None))
    if max_new_tokens < 1:
        return [[] for _ in everything]
    live: list[Texts] = []
    while waiting or live:
        advancing, unread = sum(texts.advancing for texts in live), sum(texts.unread for texts in live)
        while waiting and (not live or (advancing + waiting[0].advancing <= batch_size
                                        and unread < MAX_PROMPT_TOKENS)):
            texts = waiting.popleft()
            texts.open()
            live.append(texts)
            advancing, unread = advancing + texts.advancing, unread + texts.unread
        advance(live, MAX_PROMPT_TOKENS)
        live = [texts for texts in live if not texts.complete]
    return [branch.new for branch in everything]
