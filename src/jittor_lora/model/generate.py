"""Continuing prompts: each is read once, then a token costs a row."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.layout import Group, Layout, Segment
from jittor_lora.model.sampling import Sampler, Sampling
from jittor_lora.runtime import jt

GREEDY = Sampling()


def generate(
    model: CausalLM,
    prefix: Sequence[int],
    branches: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    finished: Callable[[int, list[int]], bool] = lambda branch, new: False,
    on_token: Callable[[int, int], None] = lambda branch, token: None,
) -> list[list[int]]:
    """Continue several prompts that start with the same tokens; the shared part is read and kept once.

    Args:
        prefix: token ids that all prompts start with; may be empty.
        branches: the rest of each prompt, one token or more.
        max_new_tokens: most tokens to add to each. Fewer are added where the model has no position for more.
        finished: is branch number `branch` done after these new tokens? Then it takes no further step.
        on_token: called with each new token as it is chosen.

    Returns: the new tokens of each branch, including the one it finished with.

    Raises:
        UserError: a prompt that is empty or leaves no room within the model's positions, or weights that are damaged.
    """
    if not branches:
        return []
    longest, room = max(map(len, branches)), model.config.max_positions - len(prefix)
    if min(map(len, branches)) == 0:
        raise UserError("The prompt is empty; at least one token is needed.")
    if longest > room:
        raise UserError(f"The prompt has {len(prefix) + longest} tokens, more than the model's longest text of "
                        f"{model.config.max_positions}. Shorten it.")
    # The cache holds the prefix, then for each branch its rows and the room for new ones: no more than the model has
    # positions, and one less than the new tokens, as the token chosen last is never read back.
    starts, end = [], len(prefix)
    for branch in branches:
        starts.append(end)
        end += min(len(branch) + max(max_new_tokens - 1, 0), room)
    cache, sampler = model.new_cache(end), Sampler(sampling)
    lengths = [len(branch) for branch in branches]
    new: list[list[int]] = [[] for _ in branches]

    def run(live: list[int], rows: list[Sequence[int]], tokens, positions, cache_rows, wanted):
        """Read `rows[i]` more tokens of branch live[i] (after the prefix, if it is read too); logits (len(live), V)."""
        first = len(tokens) - sum(rows)
        segments = [Segment(0, first, 0, 0, 0, first)] if first else []
        for branch, count in zip(live, rows):
            k0 = starts[branch]
            segments.append(Segment(first, first + count, 0, len(prefix), k0, k0 + lengths[branch] + len(new[branch])))
            first += count
        layout = Layout([Group(0, len(tokens), 0, end, tuple(segments))])
        hidden = model.hidden(np.asarray(tokens, np.int32), np.asarray(positions, np.int32), layout,
                              np.asarray(wanted, np.int32), cache, np.asarray(cache_rows, np.int32))
        logits = model.logits(hidden).numpy()
        if not np.isfinite(logits).all():
            raise UserError("The model gives numbers that are not finite: weights of the base or of the adapter are "
                            "damaged. Fetch or train them again.")
        return logits

    with jt.no_grad():
        live = list(range(len(branches)))
        tokens, positions, cache_rows = list(prefix), list(range(len(prefix))), list(range(len(prefix)))
        wanted = []
        for branch in live:
            tokens += branches[branch]
            positions += range(len(prefix), len(prefix) + lengths[branch])
            cache_rows += range(starts[branch], starts[branch] + lengths[branch])
            wanted.append(len(tokens) - 1)
        if max_new_tokens < 1:
            return new
        logits = run(live, lengths, tokens, positions, cache_rows, wanted)
        while True:
            for branch, row in zip(live, logits):
                seen = [*prefix, *branches[branch], *new[branch]] if sampling.repetition_penalty != 1.0 else ()
                token = sampler.choose(row, seen)
                new[branch].append(token)
                on_token(branch, token)
            live = [branch for branch in live
                    if len(new[branch]) < max_new_tokens and lengths[branch] + len(new[branch]) <= room
                    and not finished(branch, new[branch])]
            if not live:
                return new
            at = [lengths[branch] + len(new[branch]) - 1 for branch in live]  # where in its branch the token stands
            logits = run(live, [1] * len(live), [new[branch][-1] for branch in live], [len(prefix) + i for i in at],
                         [starts[branch] + i for branch, i in zip(live, at)], range(len(live)))
