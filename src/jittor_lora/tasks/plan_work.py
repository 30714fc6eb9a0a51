"""The work of a run, counted without doing it: steps, streams, tokens, labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.stream import build_stream, cut
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.evaluate import longest_text
from jittor_lora.training.batches import steps_from, steps_per_epoch, total_steps

MOST_STEPS = 2000  # that are counted; of more, evenly spaced ones


class Piece(NamedTuple):
    """The examples of one stream."""

    groups: list[TokenGroup]
    rows: int
    labels: int


class Step(NamedTuple):
    """One optimiser step: its number, its examples, and its streams."""

    number: int
    batch: list[TokenGroup]
    pieces: list[Piece]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


class Work(NamedTuple):
    """
    Attributes:
        steps, rows, labels: of the whole run.
        counted: steps of its first epoch.
        longest_example: in tokens.
        dev_rows: of one validation.
    """

    steps: int
    rows: int
    labels: int
    counted: list[Step]
    longest_example: int
    dev_rows: int

    @property
    def pieces(self) -> list[Piece]:
        """The streams of the counted steps, shortest first."""
        return sorted((piece for step in self.counted for piece in step.pieces), key=lambda piece: piece.rows)

    @property
    def longest(self) -> Piece:
        return self.pieces[-1]


def work_of(groups: Sequence[TokenGroup], dev_groups: Sequence[TokenGroup], config: RunConfig) -> Work:
    """Count the work of a run on these examples."""
    total = total_steps(groups, config)
    first = list(steps_from(0, min(total, steps_per_epoch(groups, config)), groups, config))
    stride = math.ceil(len(first) / MOST_STEPS)
    counted = [Step(number, batch, _pieces(batch, config)) for number, batch in first[::stride]]
    scale = total / len(counted)
    return Work(total, round(scale * sum(step.rows for step in counted)),
                round(scale * sum(piece.labels for step in counted for piece in step.pieces)), counted,
                max(map(longest_text, groups)), sum(piece.rows for piece in _pieces(dev_groups, config)))


def _pieces(batch: Sequence[TokenGroup], config: RunConfig) -> list[Piece]:
    found = []
    for groups in cut(batch, config.max_tokens_per_stream, config.share_prefixes):
        stream = build_stream(groups, config.prompt_loss_weight)
        found.append(Piece(groups, len(stream.tokens), len(stream.labels)))
    return found
