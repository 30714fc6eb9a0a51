"""How to combine adapters, with PEFT's names for the methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from jittor_lora.errors import UserError
from jittor_lora.lora.config import MAX_RANK

METHODS = ("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
           "magnitude_prune", "magnitude_prune_svd")
PRUNING = tuple(method for method in METHODS if method.split("_")[0] in ("ties", "dare", "magnitude"))
MAJORITY = ("total", "frequency")


@dataclass(frozen=True)
class Combination:
    """How to combine adapters.

    Args:
        method: one of `METHODS`.
        density: the fraction of the values that pruning keeps, for the methods in `PRUNING`.
        majority: how TIES elects a sign: "total", that of the sum; "frequency", the more frequent one.
        svd_rank: rank of the result of the `_svd` methods; by default the largest of the adapters' ranks.
        svd_clamp: quantile of the values of A and B at which they are clamped, for the `_svd` methods.
        seed: of DARE's random choices.

    Raises:
        UserError: an unknown method, or values that are missing, out of range or without effect; all are listed.
    """

    method: str = "svd"
    density: Optional[float] = None
    majority: str = "total"
    svd_rank: Optional[int] = None
    svd_clamp: Optional[float] = None
    seed: int = 42

    def __post_init__(self):
        wrong = []
        low = "above 0" if self.method.startswith("dare") else "from 0"
        if self.method not in METHODS:
            wrong.append(f"method: expected one of {', '.join(METHODS)}, found {self.method}")
        elif self.method in PRUNING and not _is_share(self.density, self.method.startswith("dare")):
            wrong.append(f"density: {self.method} needs a number {low} to 1, found {self.density}")
        elif self.method not in PRUNING and self.density is not None:
            wrong.append(f"density: has no effect with {self.method}; it goes with {', '.join(PRUNING)}")
        if self.majority not in MAJORITY:
            wrong.append(f"majority: expected {' or '.join(MAJORITY)}, found {self.majority}")
        if not self.method.endswith("svd"):
            wrong += [f"{name}: has no effect with {self.method}; it goes with the methods that end in svd"
                      for name in ("svd_rank", "svd_clamp") if getattr(self, name) is not None]
        elif self.svd_rank is not None and not 1 <= self.svd_rank <= MAX_RANK:
            wrong.append(f"svd_rank: expected a whole number from 1 to {MAX_RANK}, found {self.svd_rank}")
        elif self.svd_clamp is not None and not _is_share(self.svd_clamp, False):
            wrong.append(f"svd_clamp: expected a number from 0 to 1, found {self.svd_clamp}")
        if wrong:
            raise UserError("Combination of adapters:\n  " + "\n  ".join(wrong))


def _is_share(value: float | None, above_zero: bool) -> bool:
    return value is not None and (0 < value if above_zero else 0 <= value) and value <= 1
