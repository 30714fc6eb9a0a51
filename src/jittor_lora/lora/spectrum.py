"""Norms, effective rank and similarity of updates scaling · B A, computed from A and B alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jittor_lora.lora.combine import Factors


class Spectrum(NamedTuple):
    """Measures of one module's update.

    Attributes:
        frobenius: √Σσ², over its singular values σ.
        spectral: the largest σ.
        effective_rank: exp(−Σ p ln p) with p = σ / Σσ (Roy & Vetterli 2007): r if r directions contribute
            equally, 1 if one dominates; 0 for an update of zeros.
    """

    frobenius: float
    spectral: float
    effective_rank: float


class Difference(NamedTuple):
    """How two updates of one weight differ.

    Attributes:
        relative: ‖second − first‖ / ‖first‖, Frobenius norms; NaN if the first is zero.
        cosine: ⟨first, second⟩ / (‖first‖ ‖second‖); NaN if one is zero.
    """

    relative: float
    cosine: float


def singular_values(factors: Factors) -> np.ndarray:
    """(r,) float64, in descending order: those of Rb Raᵀ, where B = Qb Rb and Aᵀ = Qa Ra."""
    ra = np.linalg.qr(factors.a.T.astype(np.float64), mode="r")
    rb = np.linalg.qr(factors.b.astype(np.float64), mode="r")
    return abs(factors.scaling) * np.linalg.svd(rb @ ra.T, compute_uv=False)


def spectrum(factors: Factors) -> Spectrum:
    values = singular_values(factors)
    total = values.sum()
    shares = values[values > 0] / total if total > 0 else values[:0]
    rank = float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0
    return Spectrum(float(np.sqrt(np.sum(values**2))), float(values[0]), rank)


def difference(first: Factors, second: Factors) -> Difference:
    """
    Raises:
        ValueError: the updates are of weights of different shapes.
    """
    if first.a.shape[1] != second.a.shape[1] or len(first.b) != len(second.b):
        raise ValueError("updates of weights of different shapes")
    norms = [spectrum(factors).frobenius for factors in (first, second)]
    # second − first is an update too; its rank is the sum of both.
    apart = Factors(np.concatenate([second.scaling * second.a.astype(np.float64),
                                    -first.scaling * first.a.astype(np.float64)]),
                    np.concatenate([second.b, first.b], axis=1), 1.0)
    # ⟨B A, B' A'⟩ = Σ (Bᵀ B') ∘ (A A'ᵀ)
    inner = first.scaling * second.scaling * np.sum((first.b.T.astype(np.float64) @ second.b)
                                                    * (first.a.astype(np.float64) @ second.a.T))
    both = norms[0] * norms[1]
    return Difference(spectrum(apart).frobenius / norms[0] if norms[0] else float("nan"),
                      float(np.clip(inner / both, -1, 1)) if both else float("nan"))
