"""Log-probabilities of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jittor_lora.serving.compute.jobs import Token


def scored_tokens(tokens: Sequence[int], logits: np.ndarray, count: int) -> list[Token]:
    """Tokens with their log-probabilities, and those of the `count` likeliest at their places.

    Args:
        tokens: (n,).
        logits: (n, V) before them.
    """
    found = []
    for token, row in zip(tokens, logits):
        row = row.astype(np.float64)
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        first = np.argpartition(-row, min(count, len(row)) - 1)[:count] if count else np.array([], np.int64)
        first = first[np.lexsort((first, -row[first]))]  # ties as the argmax has them: the lower id first
        found.append(Token(token, float(row[token]), tuple((int(i), float(row[i])) for i in first)))
    return found
