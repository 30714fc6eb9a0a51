"""Exact match and F1 of SQuAD v1.1, as its official evaluation defines them.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1. Details in which
implementations differ:

- Only ASCII punctuation is removed: "10–12" and "10-12" differ.
- Punctuation is removed before articles, and leaves no space: "the-end" becomes "theend".
- An answer that normalises to nothing ("the", "?!") has F1 0 even against an equal reference, although its exact
  match is 1 (in SQuAD v2's evaluation its F1 is 1 too).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """`text` in lower case, without ASCII punctuation and English articles, its words separated by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one of the normalised references, else 0.0.

    Raises:
        ValueError: there is no reference.
    """
    normalized = normalize_answer(prediction)
    return max(float(normalized == normalize_answer(reference)) for reference in references)


def f1(prediction: str, references: Sequence[str]) -> float:
    """The highest token F1, from 0 to 1, of the normalised prediction against any normalised reference.

    Raises:
        ValueError: there is no reference.
    """
    tokens = normalize_answer(prediction).split()
    return max(token_f1(tokens, normalize_answer(reference).split()) for reference in references)


def token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags of words; 0 if they have none in common."""
    common = sum((Counter(prediction) & Counter(reference)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def pairwise_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(P, R): `f1` of each prediction against each reference alone."""
    return bag_f1(*([normalize_answer(text).split() for text in texts] for texts in (predictions, references)))


def bag_f1(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> np.ndarray:
    """(P, R): `token_f1` of each bag of `one` and each of `other`."""
    index: dict[str, int] = {}
    for bag in (*one, *other):
        for word in bag:
            index.setdefault(word, len(index))
    counts = [np.zeros((len(bags), len(index)), np.int32) for bags in (one, other)]
    for matrix, bags in zip(counts, (one, other)):
        for row, bag in zip(matrix, bags):
            np.add.at(row, [index[word] for word in bag], 1)
    common = np.array([np.minimum(row, counts[1]).sum(1) for row in counts[0]]).reshape(len(one), len(other))
    return f1_of(common, counts[0].sum(1), counts[1].sum(1))


def f1_of(common: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(P, R): F1 where texts of `one` (P,) and `other` (R,) words have `common` (P, R) of them in common."""
    return 2 * common / np.maximum(one[:, None] + other, 1)
