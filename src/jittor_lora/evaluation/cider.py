"""CIDEr, as computed by the COCO caption evaluation and used by the E2E NLG challenge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from jittor_lora.evaluation.ngrams import counts

LONGEST = 4
_LENGTH_DEVIATION = 6.0  # sigma of the length penalty


def cider(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """The score of each text, from 0 to 10; the score of the corpus is their mean.

    Ten times the cosine of the TF-IDF vectors of a text and a reference, averaged over its references and n = 1 to 4;
    the document frequency of an n-gram is the number of texts whose references contain it (Vedantam et al. 2015,
    "CIDEr: Consensus-based Image Description Evaluation", equations 1 to 3). Like the released program, this includes
    two parts of the paper's CIDEr-D: counts are clipped to the reference's, and a Gaussian penalises a difference in
    length, measured in bigrams.

    Args:
        hypotheses: the words of each text.
        references: the words of each reference, per text.
    """
    documents: Counter[tuple[str, ...]] = Counter()
    for texts in references:
        documents.update(set().union(*(counts(words, LONGEST) for words in texts)))
    rarest = math.log(len(references))
    scores = []
    for words, texts in zip(hypotheses, references):
        vector = _Vector(words, documents, rarest)
        similarities = [vector.similarity(_Vector(text, documents, rarest)) for text in texts]
        scores.append(10.0 * sum(similarities) / len(similarities))
    return scores


class _Vector:
    """The TF-IDF weights of a text's n-grams, with their norm per n."""

    def __init__(self, words: Sequence[str], documents: Counter[tuple[str, ...]], rarest: float):
        self.weights = {ngram: count * (rarest - math.log(max(1, documents[ngram])))
                        for ngram, count in counts(words, LONGEST).items()}
        self.bigrams = max(0, len(words) - 1)
        squares = [0.0] * LONGEST
        for ngram, weight in self.weights.items():
            squares[len(ngram) - 1] += weight ** 2
        self.norms = [math.sqrt(square) for square in squares]

    def similarity(self, reference: _Vector) -> float:
        products = [0.0] * LONGEST
        for ngram, weight in self.weights.items():
            other = reference.weights.get(ngram, 0.0)
            products[len(ngram) - 1] += min(weight, other) * other
        cosines = [product / (norm * other) if norm and other else product
                   for product, norm, other in zip(products, self.norms, reference.norms)]
        penalty = math.exp(-(self.bigrams - reference.bigrams) ** 2 / (2 * _LENGTH_DEVIATION ** 2))
        return penalty * sum(cosines) / LONGEST
