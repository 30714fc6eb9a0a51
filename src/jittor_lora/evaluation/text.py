"""Scores of texts against several references: BLEU, ROUGE, and the five of the E2E NLG challenge.

A score whose package is not installed is absent, with the reason; it is never 0 for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from jittor_lora.evaluation.cider import cider
from jittor_lora.evaluation.meteor import Unavailable, meteor
from jittor_lora.evaluation.nist import nist
from jittor_lora.evaluation.rouge_l import rouge_l
from jittor_lora.evaluation.tokens import mteval_words, ptb_words

E2E_SCORES = ("BLEU-4", "NIST", "METEOR", "ROUGE-L (E2E)", "CIDEr")
_PACKAGES = "pip install 'jittor-lora[metrics]'"


@dataclass(frozen=True)
class TextScore:
    """Attributes:
        value: None if it could not be computed.
        note: how it was computed, or why not.
    """

    value: float | None
    note: str


def text_scores(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, TextScore]:
    """The scores of `predictions` (id -> text) over all of `references` (id -> accepted texts), by name.

    BLEU, ROUGE and METEOR are in percent, CIDEr goes from 0 to 10, NIST from 0 on. A missing prediction is an empty
    text. `E2E_SCORES` are those that papers on the E2E NLG challenge give.
    """
    texts = [predictions.get(name, "") for name in references]
    truths = list(references.values())
    words, true_words = _words(ptb_words, texts, truths)
    scores = {**_bleu(texts, truths), **_rouge(texts, truths)}
    scores["NIST"] = TextScore(nist(*_words(mteval_words, texts, truths)), "NIST-5, mteval-v13a, lower case")
    common = list(map(rouge_l, words, true_words))
    scores["ROUGE-L (E2E)"] = TextScore(100 * _mean(common), "of COCO captions, beta 1.2")
    scores["CIDEr"] = TextScore(_mean(cider(words, true_words)), "of COCO captions")
    try:
        scores["METEOR"] = TextScore(100 * meteor(words, true_words), "METEOR 1.5, English, normalised")
    except Unavailable as reason:
        scores["METEOR"] = TextScore(None, str(reason))
    return scores


def _words(split: Callable[[str], list[str]], texts: Sequence[str],
           truths: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [split(text) for text in texts], [[split(text) for text in accepted] for accepted in truths]


def _bleu(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, TextScore]:
    """Papineni et al. 2002, by sacrebleu; "BLEU" with its defaults, the others in lower case, as E2E's."""
    names = ("BLEU", "BLEU-1", "BLEU-2", "BLEU-4")
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return dict.fromkeys(names, TextScore(None, f"needs sacrebleu: {_PACKAGES}"))
    streams = list(zip_longest(*truths))
    # E2E's references have a space before each mark; "force" is to say nothing about that.
    metrics = (BLEU(force=True),
               *(BLEU(lowercase=True, force=True, max_ngram_order=order, effective_order=False) for order in (1, 2, 4)))
    return {name: TextScore(metric.corpus_score(texts, streams).score, str(metric.get_signature()))
            for name, metric in zip(names, metrics)}


def _rouge(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, TextScore]:
    """Lin 2004, by rouge-score: the mean F1 with the best reference of each text, of word stems."""
    kinds = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return dict.fromkeys(kinds, TextScore(None, f"needs rouge-score: {_PACKAGES}"))
    scorer = RougeScorer(list(kinds.values()), use_stemmer=True)
    found = [scorer.score_multi(accepted, text) for accepted, text in zip(truths, texts)]
    return {name: TextScore(100 * _mean([scores[kind].fmeasure for scores in found]), "rouge-score, F1, stems")
            for name, kind in kinds.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
