"""The logits after each token of a prompt, without a continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jittor_lora.inference.reader import Reader, Turn
from jittor_lora.inference.steps import EVERY_ROW
from jittor_lora.inference.texts import SCORED_ROWS


class PromptRows:
    """A `Work` that reads tokens and nothing after them.

    Args:
        scored: called as scored(number, logits (n, V)) for the logits after n tokens, from a number on.
    """

    rooms: Sequence[int] = ()
    advancing = 1
    reads_all = True

    def __init__(self, reader: Reader, tokens: Sequence[int], scored: Callable[[int, np.ndarray], None]):
        self.reader, self.prefix, self._scored = reader, tokens, scored
        self.group, self.read = None, 0

    @property
    def unread(self) -> int:
        return len(self.prefix) - self.read

    @property
    def complete(self) -> bool:
        return not self.unread

    def open(self, group: Any = None, read: int = 0) -> None:
        """See `Work`; what the group has read is read again."""
        self.group = self.reader.open(len(self.prefix), ())

    def turn(self, room: int) -> tuple[Turn, str]:
        start = self.read
        self.read += min(self.unread, room, SCORED_ROWS)
        return Turn(self.group, self.prefix[start : self.read], ()), EVERY_ROW

    def take(self, results: Iterator[Any]) -> None:
        logits = next(results)
        self._scored(self.read - len(logits), logits)
