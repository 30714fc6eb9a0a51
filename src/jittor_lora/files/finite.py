"""Numbers that are not finite, found on numpy's side: compiled with -Ofast, a test for NaN may be optimised away."""

from __future__ import annotations

from typing import Mapping

import numpy as np


def all_finite(array: np.ndarray) -> bool:
    """Are all numbers finite? A sum of squares overflows to infinity only above 1e19, where the slow way decides."""
    flat = array.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


def kinds(array: np.ndarray) -> str:
    """What is wrong with an array: "3 NaN and 1 infinite of 48 numbers"."""
    counts = {"NaN": np.isnan(array).sum(), "infinite": np.isinf(array).sum()}
    return f"{' and '.join(f'{count:,} {kind}' for kind, count in counts.items() if count)} of {array.size:,} numbers"


def not_finite(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The names of those arrays that are not all finite → what is wrong with them; read one at a time."""
    found = {}
    for name in arrays:
        array = arrays[name]
        if not all_finite(array):
            found[name] = kinds(array)
    return found
