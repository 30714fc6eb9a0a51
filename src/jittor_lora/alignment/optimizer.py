"""Why first updates differ though gradients agree: which setting of the optimiser explains it.

The first update of AdamW (Loshchilov & Hutter 2019, algorithm 2) is -lr g / (|g| + ε) - lr λ θ, whatever its betas:
the corrections of the bias make both averages those of the first gradient alone. Clipping multiplies g by a number,
which is the same as dividing ε by it.
"""

from __future__ import annotations

import math
from typing import Mapping, Optional, Sequence

import numpy as np

_EXPLAINED = 0.05  # an explanation leaves at most this share of the difference
_UNCORRECTED = (1 - 0.9) / math.sqrt(1 - 0.999)  # size of a first update without the corrections, betas 0.9 and 0.999
_CLOSE = 0.02


def why_updates_differ(start: Mapping[str, np.ndarray], updates: Sequence[Mapping[str, np.ndarray]],
                       gradients: Sequence[Mapping[str, np.ndarray]], rate: float,
                       grad_norm: float) -> tuple[str, dict[str, str]]:
    """A reason and its values.

    Args:
        start: the arrays before the update.
        updates, gradients: of both sides, by the names of `start`.
        rate: the learning rate of both.
        grad_norm: before clipping.
    """
    names = [name for name in updates[0] if all(name in side for side in (*updates, *gradients, start))]
    theta, first, second, g = (_flat(side, names) for side in (start, *updates, gradients[1]))
    if not names or not all(np.isfinite(side).all() for side in (first, second, g)) or not rate:
        return "update", {}
    apart = np.linalg.norm(second - first)
    # Of what has no gradient yet (A, while B is zero) only the decay of weights changes anything.
    decay = _projection(second - first, theta)
    if decay is not None and np.linalg.norm(second - first - decay * theta) <= _EXPLAINED * apart:
        return "weight_decay", {"difference": f"{-decay / rate:.3g}"}
    factor = _projection(second, first)
    if factor and np.linalg.norm(second - factor * first) <= _EXPLAINED * apart:
        uncorrected = any(abs(value / _UNCORRECTED - 1) < _CLOSE for value in (factor, 1 / factor))
        return ("bias_correction" if uncorrected else "rate"), {"factor": f"{factor:.4g}"}
    signs = np.where(g != 0, np.sign(g), 0.0)
    epsilons = [_epsilon(side, g, rate) for side in (first, second)]
    if all(epsilon is not None for epsilon in epsilons):
        left = [np.linalg.norm(side + rate * signs * np.abs(g) / np.maximum(np.abs(g) + epsilon, 1e-300))
                for side, epsilon in zip((first, second), epsilons)]
        if max(left) <= _EXPLAINED * apart:
            return _epsilon_or_clipping(*epsilons, grad_norm)
    slope = [_projection(side, g) for side in (first, second)]
    for side, value, reason in zip((first, second), slope, ("sgd_here", "sgd_there")):
        if value and np.linalg.norm(side - value * g) <= _EXPLAINED * np.linalg.norm(side):
            return reason, {}
    return "update", {}


def _epsilon_or_clipping(first: float, second: float, grad_norm: float) -> tuple[str, dict[str, str]]:
    values = {"here": f"{first:.2g}", "there": f"{second:.2g}"}
    small, large = sorted((first, second))
    # Clipped to 1, the usual threshold, on one side only.
    if small > 0 and grad_norm > 1 and abs(large / small / grad_norm - 1) < _EXPLAINED:
        return "clipping", values
    return "epsilon", values


def _epsilon(update: np.ndarray, g: np.ndarray, rate: float) -> Optional[float]:
    """The ε that explains an update best, by least squares: lr |g| - |u| |g| = |u| ε."""
    size = np.abs(update)
    square = float(size @ size)
    if not square:
        return None
    return max(float(size @ ((rate - size) * np.abs(g))) / square, 0.0)


def _projection(values: np.ndarray, direction: np.ndarray) -> Optional[float]:
    square = float(direction @ direction)
    return float(values @ direction) / square if square else None


def _flat(side: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.asarray(side[name], np.float64).reshape(-1) for name in names] or [np.zeros(0)])
