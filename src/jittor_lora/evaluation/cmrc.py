"""Exact match and F1 of CMRC 2018, for Chinese.

Cui et al. 2019, "A Span-Extraction Dataset for Chinese Machine Reading Comprehension", section 4, in the details of its
official program (`cmrc2018_evaluate.py`, version 5). DRCD, in traditional Chinese (Shao et al. 2018, arXiv:1806.00920),
came without a program; the usual one is this, too: `cmrc2018_drcd_evaluate.py` of Chinese-ELECTRA, by the authors of
CMRC 2018 (Cui et al. 2020, arXiv:2004.13922).

- Case does not count, nor does a fixed list of punctuation: most full-width marks, and of ASCII `: - * / _ ~ + = ^`,
  backslash and backtick. Others, such as `.`, `(` and the ellipsis, do.
- A segment is one Chinese character (U+4E00 to U+9FA5) or one word between them, as NLTK cuts words (`treebank.py`).
- F1 is that of the longest common run of segments, not of a bag of words.
- An answer of nothing but such punctuation has F1 0 even against an equal reference, although its exact match is 1.

The program knows no unanswerable questions; here they score as in SQuAD v2: 1 for an empty prediction, else 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from jittor_lora.evaluation.squad import f1_of
from jittor_lora.evaluation.treebank import words

_WITHOUT_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_PARTS = re.compile("(?P<character>[\u4e00-\u9fa5])|[^\u4e00-\u9fa5]+")


def normalize_answer(text: str) -> str:
    """`text` in lower case, without whitespace around it and without the punctuation that does not count."""
    return text.lower().strip().translate(_WITHOUT_PUNCTUATION)


def segments(text: str) -> list[str]:
    """The segments of a text, normalised."""
    found: list[str] = []
    for part in _PARTS.finditer(normalize_answer(text)):
        found += [part[0]] if part["character"] else words(part[0])
    return found


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one of the normalised references, else 0.0."""
    if not references:
        return float(not prediction.strip())
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The highest F1, from 0 to 1, of the longest common run of segments with any reference."""
    if not references:
        return exact_match(prediction, references)
    found = segments(prediction)
    return max(_run_f1(found, segments(reference)) for reference in references)


def _run_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common_run(prediction, reference)
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def longest_common_run(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest sequence of consecutive elements that both have."""
    longest, before = 0, [0] * (len(other) + 1)
    for element in one:
        row = [0]
        for at, candidate in enumerate(other):
            row.append(before[at] + 1 if element == candidate else 0)
        longest, before = max(longest, *row), row
    return longest


def pairwise_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(P, R): `f1` of each prediction against each reference alone; an empty one stands for no answer."""
    index: dict[str, int] = {}
    found = [[[index.setdefault(segment, len(index)) for segment in segments(text)] for text in texts]
             for texts in (predictions, references)]
    lengths = [np.array(list(map(len, texts)), np.int32) for texts in found]
    common = _common_runs(*(_padded(texts, -1 - i) for i, texts in enumerate(found)))
    empty, without = ([not text.strip() for text in predictions], [not text for text in references])
    return np.where(np.outer(empty, without), 1.0, f1_of(common, *lengths))


def _padded(texts: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """(N, L): the numbers of each text, then the filler."""
    padded = np.full((len(texts), max(map(len, texts), default=0)), filler, np.int32)
    for row, text in zip(padded, texts):
        row[: len(text)] = text
    return padded


def _common_runs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(P, R): `longest_common_run` of each row of `one` (P, L) and each of `other` (R, M)."""
    longest = np.zeros((len(one), len(other)), np.int32)
    ending = np.zeros((*longest.shape, other.shape[1] + 1), np.int32)  # runs that end at each element of `other`
    for at in range(one.shape[1]):
        ending[..., 1:] = np.where(one[:, at, None, None] == other, ending[..., :-1] + 1, 0)
        np.maximum(longest, ending.max(-1), out=longest)
    return longest
