"""Why first updates differ though gradients agree: which setting of the optimiser explains it.

The first update of AdamW (Loshchilov & Hutter 2019, algorithm 2) is -lr g / (|g| + ε) - lr λ θ, whatever its betas:
the corrections of the bias make both averages those of the first gradient alone. Clipping multiplies g by a number,
which is the same as dividing ε by it.
"""

from __future__ import annotations

import math
from typing import Mapping, NamedTuple, Optional, Sequence

import numpy as np

_EXPLAINED = 0.05  # an explanation leaves at most this share
_SAME = 1e-3  # relative, of learning rates
_USUAL_DECAY = 0.1  # far below it a decay is the rounding of θ
_UNCORRECTED = (1 - 0.9) / math.sqrt(1 - 0.999)  # size of a first update without the corrections, betas 0.9 and 0.999


class AdamW(NamedTuple):
    """Settings that explain an update; `left` is the norm of what they do not explain."""

    rate: float
    epsilon: float
    decay: float
    left: float


def why_updates_differ(start: Mapping[str, np.ndarray], updates: Sequence[Mapping[str, np.ndarray]],
                       gradients: Sequence[Mapping[str, np.ndarray]], grad_norm: float) -> tuple[str, dict[str, str]]:
    """A reason and its values.

    Args:
        start: the arrays before the update.
        updates, gradients: of both sides, by the names of `start`.
        grad_norm: before clipping.
    """
    names = [name for name in updates[0] if all(name in side for side in (*updates, *gradients, start))]
    if not names:
        return "update", {}
    theta, first, second, *slopes = (_flat(side, names) for side in (start, *updates, *gradients))
    if not all(np.isfinite(side).all() for side in (first, second, *slopes)) or not (first.any() and second.any()):
        return "update", {}
    for side, g, reason in ((first, slopes[0], "sgd_here"), (second, slopes[1], "sgd_there")):
        if g.any() and np.linalg.norm(side - (side @ g) / (g @ g) * g) <= _EXPLAINED * np.linalg.norm(side):
            return reason, {}
    here, there = (_explained(side, g, theta) for side, g in zip((first, second), slopes))
    if here is None or there is None or max(here.left, there.left) > _EXPLAINED * np.linalg.norm(second - first):
        return "update", {}
    factor = there.rate / here.rate
    if abs(here.decay - there.decay) > _SAME * max(abs(here.decay), abs(there.decay), _USUAL_DECAY):
        return "weight_decay", {"here": f"{abs(here.decay):.3g}", "there": f"{abs(there.decay):.3g}"}
    if any(abs(value / _UNCORRECTED - 1) < _EXPLAINED for value in (factor, 1 / factor)):
        return "bias_correction", {"factor": f"{factor:.4g}"}
    if abs(factor - 1) > _SAME:
        return "rate", {"factor": f"{factor:.4g}"}
    values = {"here": f"{here.epsilon:.2g}", "there": f"{there.epsilon:.2g}"}
    small, large = sorted((here.epsilon, there.epsilon))
    if large - small <= _EXPLAINED * large:
        return "update", {}
    # Clipped to 1, the usual threshold, on one side only.
    clipped = small > 0 and grad_norm > 1 and abs(large / small / grad_norm - 1) < _EXPLAINED
    return ("clipping" if clipped else "epsilon"), values


def _explained(update: np.ndarray, g: np.ndarray, theta: np.ndarray) -> Optional[AdamW]:
    """The settings that fit best. None without gradients.

    What has no gradient (A, while B is zero) changes by the decay of weights alone. Of the rest |u| = lr - ε |u| / |g|,
    which is linear in lr and ε.
    """
    moved, still = g != 0, g == 0
    if not moved.any():
        return None
    square = theta[still] @ theta[still]
    shrinks = -(update[still] @ theta[still]) / square if square else 0.0  # lr λ
    step = np.abs((update + shrinks * theta)[moved])
    ratios = step / np.abs(g[moved])
    scale = ratios.max() or 1.0  # both columns of a size
    (rate, epsilon), *_ = np.linalg.lstsq(np.stack([np.ones_like(step), -ratios / scale], axis=1), step, rcond=None)
    epsilon /= scale
    epsilon = max(float(epsilon), 0.0)
    if rate <= 0:
        return None
    again = -shrinks * theta
    again[moved] -= rate * g[moved] / (np.abs(g[moved]) + epsilon)
    return AdamW(float(rate), epsilon, float(shrinks / rate), float(np.linalg.norm(update - again)))


def _flat(side: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.asarray(side[name], np.float64).reshape(-1) for name in names])
