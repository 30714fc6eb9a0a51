"""How far two trainings may be apart, check by check, and the unit of each number.

Before the first update nothing can grow, so the first checks are as narrow as float32 allows: two orders of summation
of a few thousand products, through some tens of layers, differ by some 1e-6 of the norm. Afterwards each step starts
from what the last one left, and Adam divides by the size of the gradient, so that rounding grows over the steps; the
later tolerances are for some hundred steps. What a real run shows is in docs/align.md.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, NamedTuple, Optional

COUNT, RELATIVE, NATS = "count", "relative", "nats"


class Tolerance(NamedTuple):
    """
    Attributes:
        most: the largest difference that passes; None where a check only informs.
        unit: COUNT: things that differ; NATS: per label; RELATIVE: the norm of the difference to the larger norm of the
            two, or the difference to the larger number. Below a thousandth of the largest array of its kind, an array
            is measured against that thousandth.
    """

    most: Optional[float]
    unit: str


TOLERANCES: Mapping[str, Tolerance] = MappingProxyType({
    "data": Tolerance(0, COUNT),
    "base": Tolerance(1e-6, RELATIVE),
    "initial_adapter": Tolerance(0, RELATIVE),
    "activations": Tolerance(1e-5, RELATIVE),
    "loss": Tolerance(1e-4, RELATIVE),
    "gradients": Tolerance(1e-3, RELATIVE),
    "first_update": Tolerance(1e-3, RELATIVE),
    "learning_rate": Tolerance(1e-6, RELATIVE),
    "losses": Tolerance(1e-2, NATS),
    "gradient_norms": Tolerance(2e-2, RELATIVE),
    "final_adapter": Tolerance(1e-2, RELATIVE),
    "held_out": Tolerance(1e-2, RELATIVE),
    "answers": Tolerance(None, COUNT),
})
