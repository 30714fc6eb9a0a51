"""What each rank of a data parallel run computes of a step: whole streams, or runs of the groups of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jittor_lora.data.examples import TokenGroup
from jittor_lora.data.stream import Stream, build_stream, cut, rows


@dataclass(frozen=True)
class Part:
    """A stream as one rank computes it, or the part of it that is dealt to that rank.

    Attributes:
        stream: of the part's own groups.
        number: of the stream among those of the step.
    """

    stream: Stream
    number: int


def parts(batch: Sequence[TokenGroup], max_tokens: int, prompt_loss_weight: float = 0.0, share_prefixes: bool = True,
          rank: int = 0, ranks: int = 1) -> list[Part]:
    """The streams of `micro_batches`, as far as they are dealt to `rank`, which may get nothing.

    The groups of all streams, in their order, are cut into a run for each rank, such that the longest run is as short
    as can be. A group, which is a paragraph with its questions, is never cut for that.
    """
    streams = cut(batch, max_tokens, share_prefixes)
    places = [(number, group) for number, groups in enumerate(streams) for group in range(len(groups))]
    sizes = [rows(group.prefix, group.branches) for groups in streams for group in groups]
    start, end = runs(sizes, ranks)[rank]
    made = []
    for number in sorted({number for number, _ in places[start:end]}):
        own = [group for stream, group in places[start:end] if stream == number]
        before = streams[number][: own[0]]
        skipped = build_stream(before, prompt_loss_weight) if before else None
        stream = build_stream([streams[number][group] for group in own], prompt_loss_weight)
        made.append(Part(replace(stream, rows_before=len(skipped.tokens),
                                 label_rows_before=len(np.unique(skipped.label_rows))) if skipped else stream, number))
    return made


def runs(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(start, end) of `count` runs that follow each other, some of them perhaps empty, whose largest sum is least."""
    low, high = max([0, *sizes]), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_cut_at(sizes, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    made = _cut_at(sizes, low)
    return made + [(len(sizes), len(sizes))] * (count - len(made))


def _cut_at(sizes: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """Runs of at most `capacity` in sum, each as long as can be."""
    made, start, held = [], 0, 0
    for i, size in enumerate(sizes):
        if held + size > capacity and i > start:
            made.append((start, i))
            start, held = i, 0
        held += size
    return [*made, (start, len(sizes))] if start < len(sizes) else made
