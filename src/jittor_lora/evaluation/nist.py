"""NIST-5, as mteval-v13a defines it and the evaluation of the E2E NLG challenge uses it.

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
    """The NIST score of a corpus: the information of the n-grams found in the references, for each n-gram written.

    The information of an n-gram is log2 of how much more often its first n − 1 words occur in the references than all
    its words (equation 2); a text shorter than its references, on average, is penalised (equation 3). In NLTK's
    function of this name the best reference of each text alone counts, so its scores differ.

    Args:
        hypotheses: the words of each text.
        references: of each text, the words of its references.
    """
    return score_of(statistics(hypotheses, references).sum(axis=0))


def statistics(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """What the score is made of, a row of 2 * LONGEST + 2 for each text.

    For n = 1 to LONGEST the information of its n-grams found, then the numbers of those written; the words of the text,
    and the mean of its references'. The information of an n-gram is that of all references.
    """
    occurrences = Counter({(): sum(len(words) for texts in references for words in texts)})
    for texts in references:
        for words in texts:
            occurrences.update(counts(words, LONGEST))
    rows = np.zeros((len(hypotheses), 2 * LONGEST + 2))
    for row, words, texts in zip(rows, hypotheses, references):
        found, written = row[:LONGEST], row[LONGEST:-2]
        allowed = highest_counts(texts, LONGEST)
        for ngram, count in counts(words, LONGEST).items():
            written[len(ngram) - 1] += count
            if ngram in allowed:
                information = math.log2(occurrences[ngram[:-1]] / occurrences[ngram])
                found[len(ngram) - 1] += min(count, allowed[ngram]) * information
        row[-2:] = len(words), sum(map(len, texts)) / len(texts)
    return rows


def score_of(sums: np.ndarray) -> float:
    """The score of texts whose statistics add up to `sums`."""
    found, written, (length, expected) = sums[:LONGEST], sums[LONGEST:-2], sums[-2:]
    ratio = length / expected if expected else 0.0
    penalty = math.exp(_PENALTY * math.log(ratio) ** 2) if 0 < ratio < 1 else float(ratio > 0)
    return float(penalty * sum(information / count for information, count in zip(found, written) if count))
