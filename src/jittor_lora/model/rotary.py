"""Frequencies of rotary positions (Su et al. 2021), also stretched for long texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Optional

if TYPE_CHECKING:
    import numpy as np


class RopeScaling(NamedTuple):
    """How frequencies are stretched.

    Attributes:
        kind: "linear", all frequencies divided by `factor` (Chen et al. 2023, eq. 4); or "llama3", the low ones alone,
            with a transition (Llama 3.1; Dubey et al. 2024, section 3.4.3, and Meta's code).
        low, high: for "llama3": the frequencies of wavelength above original_positions / low are divided by `factor`,
            those below original_positions / high are kept.
        original_positions: for "llama3": of the first training.
    """

    kind: str
    factor: float
    low: float = 0.0
    high: float = 0.0
    original_positions: int = 0


def frequencies(head_dim: int, theta: float, scaling: Optional[RopeScaling] = None) -> np.ndarray:
    """(head_dim / 2,) float32: angle per position of each pair, theta^(-2i/d) before scaling.

    Every step is rounded to float32 in transformers' order, and the power correctly, as PyTorch's is: one unit in the
    last place would show in the logits of long texts.
    """
    import numpy as np  # here, as --help reads the families
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = np.float32(1.0) / (theta ** exponent.astype(np.float64)).astype(np.float32)
    if scaling is None:
        return plain
    factor = np.float32(scaling.factor)
    if scaling.kind == "linear":
        return plain / factor
    one, low, length = map(np.float32, (1.0, scaling.low, scaling.original_positions))
    # PyTorch divides a number by an array as the array's reciprocal times the number.
    wavelength = one / plain * np.float32(2 * math.pi)
    kept = (one / wavelength * length - low) / np.float32(scaling.high - scaling.low)  # 0 at `low`, 1 at `high`
    between = (one - kept) * plain / factor + kept * plain
    is_low = wavelength > np.float32(scaling.original_positions / scaling.low)
    is_high = wavelength < np.float32(scaling.original_positions / scaling.high)
    return np.where(is_low, plain / factor, np.where(is_high, plain, between))
