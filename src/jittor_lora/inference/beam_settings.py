"""Settings of beam search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

from jittor_lora.errors import UserError

EARLY_STOPPING = (False, True, "never")


@dataclass(frozen=True)
class Beams:
    """Settings of beam search; the names and meanings are those of transformers.

    Args:
        count: number of beams.
        length_penalty: a finished text scores its log-probability divided by its length to this power: positive
            values favour longer texts, negative ones shorter texts.
        early_stopping: False stops when no running beam would beat the worst finished one if it ended now, True as
            soon as `count` are finished, "never" when no running beam can ever beat it.

    Raises:
        UserError: values out of range, all listed.
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
            raise UserError("Beam search settings:\n  " + "\n  ".join(wrong))
