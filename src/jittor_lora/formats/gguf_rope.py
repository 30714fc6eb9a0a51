"""Scaled rotary positions in GGUF files.

llama.cpp's conversion stores Llama 3's scaling not as numbers but as what it divides each frequency by, in the tensor
rope_freqs.weight. config.json has the numbers, so they are recovered: those with which Llama 3's formula gives these
very factors.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Optional

import numpy as np

from jittor_lora.model.rotary import RopeScaling, frequencies

# Llama 3.1 to 3.3 have low 1, high 4, 8,192 positions, and the factor 8 or 32. Only the ratios of low, high and
# positions matter, so one value of low is enough.
_LOW = 1.0
_HIGHS = (4.0, 2.0, 8.0, 16.0, 32.0)
_FACTORS = (8.0, 32.0, 2.0, 4.0, 16.0, 64.0)
_POSITIONS = (8192, *(1 << power for power in range(4, 21) if power != 13))
_TOLERANCE = 1e-5  # the conversion rounds its steps otherwise than transformers


def llama3_scaling(factors: np.ndarray, head_dim: int, theta: float) -> Optional[dict[str, Any]]:
    """`rope_scaling` of config.json that divides the frequencies by these factors.

    Args:
        factors: (head_dim / 2,) float32, at least 1.

    Returns: an empty dictionary if nothing is scaled; None if Llama 3's formula does not give these factors.
    """
    if (factors == 1).all():
        return {}
    if not np.isfinite(factors).all() or factors.min() < 1:
        return None
    plain = frequencies(head_dim, theta)
    largest = float(factors.max())
    for high, positions, factor in product(_HIGHS, _POSITIONS, dict.fromkeys((largest, *_FACTORS))):
        scaling = RopeScaling("llama3", factor, _LOW, high, positions)
        if factor >= largest and np.allclose(plain / frequencies(head_dim, theta, scaling), factors, _TOLERANCE, 0):
            return {"rope_type": "llama3", "factor": factor, "low_freq_factor": _LOW, "high_freq_factor": high,
                    "original_max_position_embeddings": positions}
    return None
