"""Scores of texts against several references: BLEU, ROUGE, and the five of the E2E NLG challenge.

A score whose package is not installed is absent, with the reason, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from jittor_lora.evaluation import nist
from jittor_lora.evaluation.bootstrap import CONFIDENCE, FEWEST_UNITS, METHOD, percentiles, resampled_sums
from jittor_lora.evaluation.cider import cider
from jittor_lora.evaluation.meteor import Unavailable, meteor
from jittor_lora.evaluation.rouge_l import rouge_l
from jittor_lora.evaluation.tokens import mteval_words, ptb_words

RESAMPLES = 1_000
INTERVAL = {"method": METHOD, "unit": "prompt", "confidence": CONFIDENCE, "resamples": RESAMPLES}
E2E_SCORES = ("BLEU-4", "NIST", "METEOR", "ROUGE-L (E2E)", "CIDEr")
_PACKAGES = "pip install 'jittor-lora[metrics]'"


@dataclass(frozen=True)
class TextScore:
    """Attributes:
        value: None if it could not be computed.
        note: how it was computed, or why not.
        interval: 95 % bootstrap interval over prompts; None without a value, or with fewer than `FEWEST_UNITS` prompts.
    """

    value: float | None
    note: str
    interval: tuple[float, float] | None = None

    @property
    def shown(self) -> str:
        """In words: value and interval, or "absent"."""
        if self.value is None:
            return "absent"
        return f"{self.value:.2f}" + (" [{:.2f}, {:.2f}]".format(*self.interval) if self.interval else "")


def text_scores(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str],
                seed: int = 0) -> dict[str, TextScore]:
    """The scores of `predictions` (id -> text) over all of `references` (id -> accepted texts), by name.

    BLEU, ROUGE and METEOR are in percent, CIDEr is from 0 to 10, NIST 0 or more. A missing prediction counts as an
    empty text. `E2E_SCORES` are the ones that papers on the E2E NLG challenge report.
    """
    texts = [predictions.get(name, "") for name in references]
    truths = list(references.values())
    words, true_words = _words(ptb_words, texts, truths)
    scores = {**_bleu(texts, truths, seed), **_rouge(texts, truths, seed)}
    statistics = nist.statistics(*_words(mteval_words, texts, truths))
    scores["NIST"] = _of_sums(nist.score_of, statistics, "NIST-5, mteval-v13a, lower case", seed)
    f_measures = [100 * rouge_l(*text) for text in zip(words, true_words)]
    scores["ROUGE-L (E2E)"] = _of_means(f_measures, "as for COCO captions, beta 1.2", seed)
    scores["CIDEr"] = _of_means(cider(words, true_words), "as for COCO captions", seed)
    try:
        whole, drawn = meteor(words, true_words, resamples=RESAMPLES, seed=seed)
        scores["METEOR"] = TextScore(100 * whole, "METEOR 1.5, English, normalised", _interval(100 * drawn, len(texts)))
    except Unavailable as reason:
        scores["METEOR"] = TextScore(None, str(reason))
    return scores


def _interval(drawn: Sequence[float], prompts: int) -> tuple[float, float] | None:
    return percentiles(np.asarray(drawn), prompts) if prompts >= FEWEST_UNITS else None


def _of_sums(score: Callable[[np.ndarray], float], statistics: np.ndarray, note: str, seed: int) -> TextScore:
    """A score that is a function of the sums of the texts' statistics (n, k)."""
    drawn = [score(sums) for sums in resampled_sums(statistics, RESAMPLES, seed)]
    return TextScore(score(statistics.sum(axis=0)), note, _interval(drawn, len(statistics)))


def _of_means(values: Sequence[float], note: str, seed: int) -> TextScore:
    """A score that is the mean over the texts."""
    return _of_sums(lambda sums: float(sums[0]) / len(values), np.array(values)[:, None], note, seed)


def _words(split: Callable[[str], list[str]], texts: Sequence[str],
           truths: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [split(text) for text in texts], [[split(text) for text in accepted] for accepted in truths]


def _bleu(texts: Sequence[str], truths: Sequence[Sequence[str]], seed: int) -> dict[str, TextScore]:
    """Papineni et al. 2002, by sacrebleu: "BLEU" with its defaults, the others in lower case as in E2E."""
    names = ("BLEU", "BLEU-1", "BLEU-2", "BLEU-4")
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return dict.fromkeys(names, TextScore(None, f"needs sacrebleu: {_PACKAGES}"))
    streams = list(zip_longest(*truths))
    scores = {}
    for name, lower_case, order in zip(names, (False, True, True, True), (4, 1, 2, 4)):
        # E2E's references have a space before each punctuation mark; "force" silences the warning about that.
        settings = {"lowercase": lower_case, "force": True, "max_ngram_order": order}
        metric, one = BLEU(**settings), BLEU(**settings, effective_order=True)
        whole = metric.corpus_score(texts, streams)
        found = (one.sentence_score(text, accepted) for text, accepted in zip(texts, truths))
        statistics = np.array([[*text.counts, *text.totals, text.sys_len, text.ref_len] for text in found])
        drawn = [BLEU.compute_bleu(sums[:order], sums[order:-2], *sums[-2:], smooth_method="exp", max_ngram_order=order)
                 for sums in resampled_sums(statistics, RESAMPLES, seed).astype(int).tolist()]
        scores[name] = TextScore(whole.score, str(metric.get_signature()),
                                 _interval([score.score for score in drawn], len(texts)))
    return scores


def _rouge(texts: Sequence[str], truths: Sequence[Sequence[str]], seed: int) -> dict[str, TextScore]:
    """Lin 2004, by rouge-score: the mean over texts of F1 on word stems, each with its best reference."""
    kinds = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return dict.fromkeys(kinds, TextScore(None, f"needs rouge-score: {_PACKAGES}"))
    scorer = RougeScorer(list(kinds.values()), use_stemmer=True)
    found = [scorer.score_multi(accepted, text) for accepted, text in zip(truths, texts)]
    return {name: _of_means([100 * scores[kind].fmeasure for scores in found], "rouge-score, F1, stems", seed)
            for name, kind in kinds.items()}
