"""Which examples each step reads, as which streams, and how many steps there are."""

from __future__ import annotations

import math
from typing import Iterator, Sequence

from jittor_lora.data.groups import TokenGroup, drawn, separate
from jittor_lora.data.parts import deal
from jittor_lora.data.stream import Stream, batches, micro_batches, rows
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.ranks import ALONE, Ranks


def steps_from(start: int, total: int, groups: Sequence[TokenGroup],
               config: RunConfig) -> Iterator[tuple[int, list[TokenGroup]]]:
    """(step, its examples) for the steps from `start` up to `total`; the order depends only on seed and epoch."""
    per_epoch, accumulated = steps_per_epoch(groups, config), config.gradient_accumulation
    groups = groups if config.whole_paragraphs else separate(groups)
    epoch, order = -1, []
    for step in range(start, total):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = batches(of_epoch(groups, config, epoch), config.batch_size, config.seed, epoch)
        first = step % per_epoch * accumulated
        yield step, [group for batch in order[first : first + accumulated] for group in batch]


def of_epoch(groups: Sequence[TokenGroup], config: RunConfig, epoch: int) -> Sequence[TokenGroup]:
    """The examples as an epoch learns them, with one reference answer or with all."""
    return drawn(groups, config.seed, epoch) if config.references == "sampled" else groups


def streams_of(groups: Sequence[TokenGroup], config: RunConfig, ranks: Ranks = ALONE) -> list[Stream]:
    """The streams of these examples; of several ranks, what is dealt to this one."""
    how = config.max_tokens_per_stream, config.prompt_loss_weight, config.share_prefixes
    return micro_batches(groups, *how) if ranks.size == 1 else deal(groups, *how, ranks.rank, ranks.size)


def total_steps(groups: Sequence[TokenGroup], config: RunConfig) -> int:
    """Optimiser steps of the whole run."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round(config.epochs * steps_per_epoch(groups, config)))


def steps_per_epoch(groups: Sequence[TokenGroup], config: RunConfig) -> int:
    questions = sum(len(group.branches) for group in groups)
    return math.ceil(questions / (config.batch_size * config.gradient_accumulation))


def tokens_per_step(groups: Sequence[TokenGroup], config: RunConfig) -> float:
    """Average rows per step, not counting twice what is computed twice where a paragraph is cut."""
    groups = of_epoch(groups if config.share_prefixes else separate(groups), config, 0)
    return sum(rows(group.prefix, group.branches) for group in groups) / steps_per_epoch(groups, config)


def due(step: int, every: int | None) -> bool:
    """Is something that happens every `every` steps due after this one? Never if that is 0 or None."""
    return bool(every) and step % every == 0
