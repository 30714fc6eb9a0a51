"""Scores of texts against several references: BLEU, ROUGE, and those of the E2E NLG and WebNLG challenges.

A score whose package is not installed is absent, with the reason, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from jittor_lora.data.examples import Data
from jittor_lora.data.jsonl import PromptData
from jittor_lora.evaluation import nist, webnlg
from jittor_lora.evaluation.bootstrap import CONFIDENCE, FEWEST_UNITS, METHOD, percentiles, resampled_sums
from jittor_lora.evaluation.cider import cider
from jittor_lora.evaluation.meteor import Unavailable, meteor
from jittor_lora.evaluation.rouge_l import rouge_l
from jittor_lora.evaluation.scoring import AUTO
from jittor_lora.evaluation.ter import ter
from jittor_lora.evaluation.tokens import mteval_words, ptb_words

RESAMPLES = 1_000
INTERVAL = {"method": METHOD, "unit": "prompt", "confidence": CONFIDENCE, "resamples": RESAMPLES}
E2E_SCORES = ("BLEU-4", "NIST", "METEOR", "ROUGE-L (E2E)", "CIDEr")
ALL = "all"  # prompts, beside groups of them
WEBNLG_SCORES = ("BLEU (WebNLG)", "METEOR (WebNLG)", "TER (WebNLG)")
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


def text_scores(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], seed: int = 0,
                evaluation: str = "e2e") -> dict[str, TextScore]:
    """The scores of `predictions` (id -> text) over `references` (id -> accepted texts), by name.

    BLEU, ROUGE, METEOR and TER are in percent, CIDEr is from 0 to 10, NIST 0 or more. A missing prediction counts as
    an empty text.

    Args:
        evaluation: one of `EVALUATIONS`: besides BLEU and ROUGE, the scores that papers on the E2E NLG challenge report
            (`E2E_SCORES`), or on WebNLG and DART (`WEBNLG_SCORES`).
    """
    texts = [predictions.get(name, "") for name in references]
    truths = list(references.values())
    return {"BLEU": _bleu(texts, truths, seed), **_rouge(texts, truths, seed),
            **EVALUATIONS[evaluation](texts, truths, seed)}


def scores_by_group(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str],
                    groups: Mapping[str, Sequence[str]], seed: int = 0,
                    evaluation: str = "e2e") -> dict[str, dict[str, TextScore]]:
    """The scores of all prompts, as `ALL`, and of each group of them, as if there were no others.

    Args:
        groups: name -> ids, see `groups_of`.
    """
    return {name: text_scores({prompt: references[prompt] for prompt in ids}, predictions, seed, evaluation)
            for name, ids in {ALL: tuple(references), **groups}.items()}


def groups_of(data: Data) -> Mapping[str, Sequence[str]]:
    """Parts of the data whose texts are also scored by themselves: name -> ids."""
    return data.groups() if isinstance(data, PromptData) else {}


def chosen_evaluation(setting: str, data: Data) -> str:
    """The name of the evaluation for a setting, "auto" or a name: with "auto", that of the data."""
    if setting != AUTO:
        return setting
    return "webnlg" if isinstance(data, PromptData) and data.format in ("WebNLG", "DART") else "e2e"


def _e2e(texts: Sequence[str], truths: Sequence[Sequence[str]], seed: int) -> dict[str, TextScore]:
    """tuetschek/e2e-metrics."""
    words, true_words = _words(ptb_words, texts, truths)
    orders = {"BLEU-1": 1, "BLEU-2": 2, "BLEU-4": 4}
    scores = {name: _bleu(texts, truths, seed, lowercase=True, order=order) for name, order in orders.items()}
    statistics = nist.statistics(*_words(mteval_words, texts, truths))
    scores["NIST"] = _of_sums(nist.score_of, statistics, "NIST-5, mteval-v13a, lower case", seed)
    f_measures = [100 * rouge_l(*text) for text in zip(words, true_words)]
    scores["ROUGE-L (E2E)"] = _of_means(f_measures, "as for COCO captions, beta 1.2", seed)
    scores["CIDEr"] = _of_means(cider(words, true_words), "as for COCO captions", seed)
    scores["METEOR"] = _meteor(words, true_words, "METEOR 1.5, English, normalised", seed)
    return scores


def _webnlg(texts: Sequence[str], truths: Sequence[Sequence[str]], seed: int) -> dict[str, TextScore]:
    """WebNLG/GenerationEval, on texts as the LoRA paper's program writes them: see `webnlg.py`."""
    truths = [accepted[: webnlg.MOST_REFERENCES] for accepted in truths]
    split, true_split = _words(webnlg.bleu_words, texts, truths)
    words, true_words = _words(webnlg.treebank_words, texts, truths)
    bleu = _bleu([" ".join(text) for text in split], [[" ".join(text) for text in accepted] for accepted in true_split],
                 seed, tokenize="none", smooth="none")
    rates = [100 * ter(*text) for text in zip(words, true_words)]
    return dict(zip(WEBNLG_SCORES, (
        bleu, _meteor(words, true_words, "METEOR 1.5, English, normalised, first six references", seed),
        _of_means(rates, "as pyter, first six references; lower is better", seed))))


EVALUATIONS = {"e2e": _e2e, "webnlg": _webnlg}


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


def _meteor(words: Sequence[Sequence[str]], true_words: Sequence[Sequence[Sequence[str]]], note: str,
            seed: int) -> TextScore:
    try:
        whole, drawn = meteor(words, true_words, resamples=RESAMPLES, seed=seed)
    except Unavailable as reason:
        return TextScore(None, str(reason))
    return TextScore(100 * whole, note, _interval(100 * drawn, len(words)))


def _bleu(texts: Sequence[str], truths: Sequence[Sequence[str]], seed: int, *, lowercase: bool = False, order: int = 4,
          tokenize: str = "13a", smooth: str = "exp") -> TextScore:
    """Papineni et al. 2002, by sacrebleu, whose defaults are those here."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return TextScore(None, f"needs sacrebleu: {_PACKAGES}")
    # E2E's references have a space before each punctuation mark; "force" silences the warning about that.
    settings = {"lowercase": lowercase, "force": True, "max_ngram_order": order, "tokenize": tokenize,
                "smooth_method": smooth}
    metric, one = BLEU(**settings), BLEU(**settings, effective_order=True)
    whole = metric.corpus_score(texts, list(zip_longest(*truths)))
    found = (one.sentence_score(text, accepted) for text, accepted in zip(texts, truths))
    statistics = np.array([[*text.counts, *text.totals, text.sys_len, text.ref_len] for text in found])
    drawn = [BLEU.compute_bleu(sums[:order], sums[order:-2], *sums[-2:], smooth_method=smooth, max_ngram_order=order)
             for sums in resampled_sums(statistics, RESAMPLES, seed).astype(int).tolist()]
    return TextScore(whole.score, str(metric.get_signature()),
                     _interval([score.score for score in drawn], len(texts)))


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
