"""What a training run has cost: time and memory, over all its parts if it was interrupted."""

from __future__ import annotations

import resource
from dataclasses import asdict, dataclass
from typing import Any

_MOST = 1e12


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        seconds: wall-clock time, from the start of each part to its last checkpoint or its end.
        peak_memory_mib: the most memory in use at once by this process, in MiB; of several parts the highest.
    """

    seconds: float = 0.0
    peak_memory_mib: int = 0

    def after(self, seconds: float) -> Cost:
        """This cost and that of the present process after so many seconds."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return Cost(round(self.seconds + seconds, 3), max(self.peak_memory_mib, peak))

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def cost_of(values: Any) -> Cost | None:
    """The inverse of `Cost.values`; None if these are not such values."""
    if not isinstance(values, dict) or values.keys() != asdict(Cost()).keys():
        return None
    if not all(type(value) in (int, float) and 0 <= value < _MOST for value in values.values()):
        return None
    return Cost(float(values["seconds"]), int(values["peak_memory_mib"]))
