"""Finds numbers that are not finite, in numpy: code compiled with -Ofast may have its NaN tests optimised away."""

from __future__ import annotations

from typing import Mapping

import numpy as np


def all_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite. A sum of squares overflows only above 1e19, where the slow test decides."""
    flat = array.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


def kinds(array: np.ndarray) -> str:
    """The kinds of numbers that are not finite: "3 NaN and 1 infinite of 48 numbers"."""
    counts = {"NaN": np.isnan(array).sum(), "infinite": np.isinf(array).sum()}
    return f"{' and '.join(f'{count:,} {kind}' for kind, count in counts.items() if count)} of {array.size:,} numbers"


def not_finite(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Name → `kinds` of each array with numbers that are not finite; arrays are read one at a time."""
    found = {}
    for name in arrays:
        array = arrays[name]
        if not all_finite(array):
            found[name] = kinds(array)
    return found
