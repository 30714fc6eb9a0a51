"""ROUGE-L, as computed by the COCO caption evaluation and used by the E2E NLG challenge."""

from __future__ import annotations

from collections.abc import Sequence

_RECALL_WEIGHT = 1.2  # beta


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F-measure, from 0 to 1, of the longest common subsequence (Lin 2004, "ROUGE", section 3).

    Unlike in rouge-score, recall weighs more (beta 1.2), words are not stemmed, and the best precision and the best
    recall may come from different references.
    """
    common = [_longest_common(words, reference) for reference in references]
    precision = max(common) / max(len(words), 1)
    recall = max(length / max(len(reference), 1) for length, reference in zip(common, references))
    if precision == 0:
        return 0.0
    return (1 + _RECALL_WEIGHT ** 2) * precision * recall / (recall + _RECALL_WEIGHT ** 2 * precision)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0  # the length without this word and without the other's
        for at, other in enumerate(second, 1):
            diagonal, lengths[at] = lengths[at], diagonal + 1 if word == other else max(lengths[at], lengths[at - 1])
    return lengths[-1]
