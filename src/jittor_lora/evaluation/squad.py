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
