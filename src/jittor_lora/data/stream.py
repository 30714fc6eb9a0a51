"""From tokenised examples to token streams: what one step of training reads.

A stream's rows are the *inputs*. The last token of a completion (end of text) is only ever a label, so it has no row;
a prefix has its rows once, however many branches continue it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jittor_lora.data.groups import Branch, TokenGroup, separate
from jittor_lora.data.layout import Layout
from jittor_lora.data.subset import shuffled


@dataclass(frozen=True)
class Stream:
    """One flat run of N tokens, K of whose rows predict M labels.

    K is less than M where several branches continue a prefix: its last row then predicts the first token of each.

    Attributes:
        tokens: (N,) int32.
        positions: (N,) int32, from 0 at each prefix, continuing from its end in each of its branches.
        layout: which earlier rows each row may see; N rows.
        label_rows: (K,) int32, the rows whose next token is scored, ascending and distinct.
        label_index: (M,) int32, for each label its row's index in `label_rows`.
        labels: (M,) int32, the tokens to predict.
        label_weights: (M,) float32.
        ids: the examples in it, in order.
        number: of the stream within its step.
        rows_before, label_rows_before: where this is a later part of a stream that several ranks share, how many rows,
            and how many of the `label_rows`, come before it. Dropout masks count rows from the start of the stream.
    """

    tokens: np.ndarray
    positions: np.ndarray
    layout: Layout
    label_rows: np.ndarray
    label_index: np.ndarray
    labels: np.ndarray
    label_weights: np.ndarray
    ids: list[str]
    number: int = 0
    rows_before: int = 0
    label_rows_before: int = 0

    @property
    def total_weight(self) -> float:
        """Sum of the label weights in double precision: the divisor of a mean loss over several streams."""
        return float(self.label_weights.sum(dtype=np.float64))


def rows(prefix: Sequence[int], branches: Sequence[Branch]) -> int:
    """Rows that a prefix with these branches takes in a stream."""
    return len(prefix) + sum(_branch_rows(branch) for branch in branches)


def build_stream(groups: Sequence[TokenGroup], prompt_loss_weight: float = 0.0, share_prefixes: bool = True,
                 number: int = 0) -> Stream:
    """The stream of these examples with their labels.

    Completion tokens have the weight of their branch, 1 by default. Prompt tokens, and those of a completion that are
    `unscored`, have `prompt_loss_weight` times that, and prefix tokens as much for each branch, since a prefix with k
    branches stands for k copies. The first token of an example is never a label.

    Args:
        groups: examples, each with a completion.
        prompt_loss_weight: 0 to 1; at 0 the prompt has no label rows at all.
        share_prefixes: False gives each example its own copy of the prefix (same losses, more rows).
        number: of the stream within its step.

    Raises:
        ValueError: no group, or an example without a completion.
    """
    if not groups:
        raise ValueError("a stream needs at least one example")
    tokens, positions, lengths, ids = [], [], [], []
    predictors, labels, weights = [], [], []  # of each label: its row, itself, its weight
    for group in groups if share_prefixes else separate(groups):
        start, prefix = len(tokens), group.prefix
        branches = [one for branch in group.branches for one in branch.all]
        tokens += prefix
        positions += range(len(prefix))
        if prompt_loss_weight and len(prefix) > 1:
            predictors += range(start, start + len(prefix) - 1)
            labels += prefix[1:]
            copies = sum(branch.weight for branch in branches)
            weights += [copies * prompt_loss_weight] * (len(prefix) - 1)
        branch_lengths = []
        for branch in branches:
            if not branch.completion:
                raise ValueError(f"example {branch.id} has no completion to learn")
            text = branch.prompt + branch.completion
            first = len(tokens)
            count = len(text) - 1
            tokens += text[:-1]
            positions += range(len(prefix), len(prefix) + count)
            # predicting[i] is the row that predicts text[i]; the prefix's last row predicts the first token.
            predicting = [start + len(prefix) - 1 if prefix else -1, *range(first, first + count)]
            # Of each token its weight as a label; the first of an example is never one.
            weighing = [prompt_loss_weight] * len(branch.prompt) + [1.0] * len(branch.completion)
            for left, right in branch.unscored:
                left, right = len(branch.prompt) + left, len(branch.prompt) + right
                weighing[left:right] = [prompt_loss_weight] * (right - left)
            scored = [i for i, weight in enumerate(weighing) if weight and (i or prefix)]
            predictors += [predicting[i] for i in scored]
            labels += [text[i] for i in scored]
            weights += [branch.weight * weighing[i] for i in scored]
            if count:
                branch_lengths.append(count)
        ids += [branch.id for branch in group.branches]
        lengths.append((len(prefix), branch_lengths))
    label_rows, label_index = np.unique(np.array(predictors, np.int32), return_inverse=True)
    return Stream(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        layout=Layout.of_lengths(lengths),
        label_rows=label_rows,
        label_index=label_index.astype(np.int32),
        labels=np.array(labels, np.int32),
        label_weights=np.array(weights, np.float32),
        ids=ids,
        number=number,
    )


def batches(groups: Sequence[TokenGroup], batch_size: int, seed: int, epoch: int) -> list[list[TokenGroup]]:
    """One epoch: every example once, about `batch_size` of them per optimiser step.

    Groups are shuffled, and so are the branches within each. A batch that would end inside a group ends at that group's
    nearer end instead, since a prefix that is cut is computed twice. So batches have `batch_size` examples on average
    and always less than twice that; without shared prefixes all but the last have exactly that many. Groups larger
    than `batch_size` are first cut into parts of that size. The number of batches depends only on the number of
    examples.

    Args:
        seed, epoch: 0 or more; the order depends only on them and on the sizes of the groups.

    Raises:
        ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    random = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    pieces = []
    for group in groups:
        branches = [group.branches[i] for i in shuffled(len(group.branches), random)]
        pieces += [
            group.with_branches(branches[i : i + batch_size]) for i in range(0, len(branches), batch_size)
        ]
    count = math.ceil(sum(len(piece.branches) for piece in pieces) / batch_size)
    found: list[list[TokenGroup]] = [[] for _ in range(count)]
    start = 0
    for piece in (pieces[i] for i in shuffled(len(pieces), random)):
        end = start + len(piece.branches)
        # A piece belongs to the batch that its middle falls into. As no piece is larger than a batch, only the last
        # batch can stay empty.
        found[(start + end) // (2 * batch_size)].append(piece)
        start = end
    if found and not found[-1]:
        *_, last = found[-2]
        kept = len(last.branches) - (start - (count - 1) * batch_size)
        found[-2][-1], found[-1] = last.with_branches(last.branches[:kept]), [last.with_branches(last.branches[kept:])]
    return found


def micro_batches(batch: Sequence[TokenGroup], max_tokens: int, prompt_loss_weight: float = 0.0,
                  share_prefixes: bool = True) -> list[Stream]:
    """Cut one optimiser batch into streams of at most `max_tokens` rows each; the sum of the weights is kept.

    There are as few streams as first fit finds, of about equal length: a matrix of few rows is multiplied more slowly,
    and the longest stream decides how much memory is needed. A group is cut only if it is larger than `max_tokens`; a
    single example larger than that gets a stream to itself.
    """
    return [build_stream(groups, prompt_loss_weight, number=number)
            for number, groups in enumerate(cut(batch, max_tokens, share_prefixes))]


def cut(batch: Sequence[TokenGroup], max_tokens: int, share_prefixes: bool = True) -> list[list[TokenGroup]]:
    """The examples of each stream that `micro_batches` builds."""
    pieces = list(_pieces(batch if share_prefixes else separate(batch), max_tokens))
    sizes = [rows(piece.prefix, piece.branches) for piece in pieces]
    return [[pieces[i] for i in chosen] for chosen in _balanced(sizes, max_tokens)]


def _balanced(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bin packing: which items share a bin of at most `capacity` (an item larger than that has its own). Few bins, the
    fullest of them not very full.

    Bisects for the smallest capacity that needs no more bins (multifit, Coffman et al. 1978).
    """
    packed = _first_fit(sizes, capacity)
    fitting = [size for size in sizes if size <= capacity]
    low, high = max([0, sum(fitting) // max(len(packed), 1), *fitting]), capacity
    while low < high:
        middle = (low + high) // 2
        tried = _first_fit(sizes, middle)
        if len(tried) <= len(packed):
            packed, high = tried, middle
        else:
            low = middle + 1
    return packed


def _first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Each item to the first bin with room for it, largest first or in the given order, whichever needs fewer bins.

    In the given order it never needs more bins than cutting the sequence would.
    """
    found = []
    for order in (sorted(range(len(sizes)), key=lambda i: -sizes[i]), range(len(sizes))):
        packed: list[list[int]] = []
        rooms: list[int] = []
        for i in order:
            at = next((at for at, room in enumerate(rooms) if sizes[i] <= room), len(rooms))
            if at == len(rooms):
                packed.append([])
                rooms.append(capacity)
            packed[at].append(i)
            rooms[at] -= sizes[i]
        found.append(sorted(map(sorted, packed)))
    return min(found, key=len)


def _branch_rows(branch: Branch) -> int:
    return sum(len(one.prompt) + max(len(one.completion) - 1, 0) for one in branch.all)


def _pieces(batch: Sequence[TokenGroup], max_tokens: int) -> Iterator[TokenGroup]:
    for group in batch:
        if rows(group.prefix, group.branches) <= max_tokens:
            yield group
            continue
        part, size = [], len(group.prefix)
        for branch in group.branches:
            if part and size + _branch_rows(branch) > max_tokens:
                yield group.with_branches(part)
                part, size = [], len(group.prefix)
            part.append(branch)
            size += _branch_rows(branch)
        yield group.with_branches(part)
