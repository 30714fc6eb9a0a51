"""Probabilities from a model that has learnt smoothed labels."""

from __future__ import annotations

import numpy as np

LEAST_KEPT = 1e-6  # of a probability that is no higher than smoothing alone makes it


def before_smoothing(logs: np.ndarray | float, smoothing: float, size: int, tokens: int = 1) -> np.ndarray | float:
    """Log-probabilities without the smoothing of the labels that the model has learnt.

    Smoothed cross-entropy (Szegedy et al. 2016, section 7) is least where the model gives a token of probability p the
    probability q = (1 - smoothing) p + smoothing / size. So p = (q - smoothing / size) / (1 - smoothing), at most 1
    here; where q is no higher than smoothing / size, p is q / 1,000,000, so that nothing is impossible.

    Uncorrected, each token of a text costs about -log(1 - smoothing) nats, so short texts look better than they are.

    Args:
        logs: the model's, in nats.
        smoothing: share of each label that was spread over the vocabulary, 0 to less than 1.
        size: of the vocabulary.
        tokens: how many tokens a probability is the sum of.
    """
    if not smoothing:
        return logs
    given = np.exp(np.asarray(logs, np.float64))
    exact = (given - tokens * smoothing / size) / (1.0 - smoothing)
    return np.log(np.clip(exact, np.maximum(LEAST_KEPT * given, np.finfo(np.float64).tiny), 1.0))
