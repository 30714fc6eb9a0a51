"""Settings of a beam search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

from jittor_lora.errors import UserError

EARLY_STOPPING = (False, True, "never")


@dataclass(frozen=True)
class Beams:
    """Settings of a search.

    Args:
        count: beams that are kept.
        length_penalty: a finished text's score is its log-probability divided by its length to this power: above 0
            prefers longer texts, below 0 shorter ones.
        early_stopping: False ends when no open beam would be better than the worst finished one if it ended now, True
            when there are `count` finished ones, "never" when no open one can ever be better.

    Raises:
        UserError: values out of range; all are listed.
    """

    count: int
    length_penalty: float = 1.0
    early_stopping: Union[bool, str] = False

    def __post_init__(self):
        checks = (
            ("count", self.count, self.count >= 1, "a whole number of at least 1"),
            ("length_penalty", self.length_penalty, math.isfinite(self.length_penalty), "a number"),
            ("early_stopping", self.early_stopping, self.early_stopping in EARLY_STOPPING, "True, False or never"),
        )
        wrong = [f"{name}: expected {expected}, found {value}" for name, value, right, expected in checks if not right]
        if wrong:
            raise UserError("Settings of the beam search:\n  " + "\n  ".join(wrong))
