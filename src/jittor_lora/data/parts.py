"""Dealing the streams of a step to the ranks of a data parallel run: whole streams, or parts of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.stream import Stream, build_stream, cut, rows


def deal(batch: Sequence[TokenGroup], max_tokens: int, prompt_loss_weight: float, share_prefixes: bool, rank: int,
         ranks: int) -> list[Stream]:
    """The streams of `micro_batches`, or parts of them, that `rank` computes; perhaps none.

    The groups of all streams, in order, are cut into one run per rank so that the longest run is as short as possible.
    A group, which is a paragraph with its questions, is never cut.
    """
    streams = cut(batch, max_tokens, share_prefixes)
    sizes = [rows(group.prefix, group.branches) for groups in streams for group in groups]
    start, end = runs(sizes, ranks)[rank]
    dealt = []
    for number, groups in enumerate(streams):
        own = range(max(start, 0), min(end, len(groups)))
        if own:
            dealt.append(_part(groups, own, prompt_loss_weight, number))
        start, end = start - len(groups), end - len(groups)
    return dealt


def _part(groups: Sequence[TokenGroup], own: range, prompt_loss_weight: float, number: int) -> Stream:
    """Some consecutive groups of a stream, with the number of rows before them."""
    part = build_stream(groups[own.start : own.stop], prompt_loss_weight, number=number)
    if own.start == 0:
        return part
    before = build_stream(groups[: own.start], prompt_loss_weight)
    return replace(part, rows_before=len(before.tokens), label_rows_before=len(before.label_rows))


def runs(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(start, end) of `count` consecutive runs, some perhaps empty, whose largest sum is as small as possible."""
    low, high = max([0, *sizes]), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_cut_at(sizes, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    found = _cut_at(sizes, low)
    return found + [(len(sizes), len(sizes))] * (count - len(found))


def _cut_at(sizes: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """Runs that sum to at most `capacity`, each as long as possible."""
    found, start, held = [], 0, 0
    for i, size in enumerate(sizes):
        if held + size > capacity and i > start:
            found.append((start, i))
            start, held = i, 0
        held += size
    return [*found, (start, len(sizes))] if start < len(sizes) else found
