"""NIST-5, as defined by mteval-v13a and used by the E2E NLG challenge.

Doddington 2002, "Automatic Evaluation of Machine Translation Quality Using N-gram Co-Occurrence Statistics".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jittor_lora.evaluation.ngrams import counts, highest_counts

LONGEST = 5
_PENALTY = math.log(0.5) / math.log(1.5) ** 2  # a text two thirds as long as the references keeps half its score


def nist(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """The NIST score of a corpus: information of the matched n-grams per n-gram written, summed over n.

    The information of an n-gram is log2 of how many times more often its first n − 1 words occur in the references
    than the whole n-gram (equation 2); texts shorter than the mean of their references are penalised (equation 3).
    NLTK's function of this name counts only the best reference of each text, so its scores differ.

    Args:
        hypotheses: the words of each text.
        references: the words of each reference, per text.
    """
    return score_of(statistics(hypotheses, references).sum(axis=0))


def statistics(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """The statistics that the score is a function of, (texts, 2 * LONGEST + 2).

    Per text: for n = 1 to LONGEST the information of its matched n-grams, then the numbers of n-grams written, the
    length in words, and the mean length of its references. Information is computed over all references.
    """
    occurrences = Counter({(): sum(len(words) for texts in references for words in texts)})
    for texts in references:
        for words in texts:
            occurrences.update(counts(words, LONGEST))
    rows = np.zeros((len(hypotheses), 2 * LONGEST + 2))
    for row, words, texts in zip(rows, hypotheses, references):
        matched, written = row[:LONGEST], row[LONGEST:-2]
        allowed = highest_counts(texts, LONGEST)
        for ngram, count in counts(words, LONGEST).items():
            written[len(ngram) - 1] += count
            if ngram in allowed:
                information = math.log2(occurrences[ngram[:-1]] / occurrences[ngram])
                matched[len(ngram) - 1] += min(count, allowed[ngram]) * information
        row[-2:] = len(words), sum(map(len, texts)) / len(texts)
    return rows


def score_of(sums: np.ndarray) -> float:
    """The score of texts whose statistics add up to `sums`."""
    matched, written, (length, expected) = sums[:LONGEST], sums[LONGEST:-2], sums[-2:]
    ratio = length / expected if expected else 0.0
    penalty = math.exp(_PENALTY * math.log(ratio) ** 2) if 0 < ratio < 1 else float(ratio > 0)
    return float(penalty * sum(information / count for information, count in zip(matched, written) if count))
