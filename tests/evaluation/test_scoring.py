"""Scoring rules against the official programs' numbers, and against references written from the published rules."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.jsonl import parse_jsonl
from jittor_lora.data.squad import parse_squad
from jittor_lora.errors import UserError
from jittor_lora.evaluation import cmrc, squad_v2
from jittor_lora.evaluation.compare import comparison_table
from jittor_lora.evaluation.no_answer import best_threshold, figures, thresholded
from jittor_lora.evaluation.scoring import RULES, chosen_rule, rule_for, rule_line, score
from jittor_lora.evaluation.squad import normalize_answer
from jittor_lora.evaluation.treebank import sentences, words


def golden(name):
    return json.loads((Path(__file__).parent / "golden" / f"{name}_official.json").read_text(encoding="utf-8"))


CMRC, V2 = golden("cmrc"), golden("squad_v2")
PUNCTUATION = [*"-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"]


@pytest.mark.parametrize("case", CMRC["cases"], ids=lambda case: repr(case["prediction"][:20]))
def test_cmrc_equals_the_official_evaluation(case):
    assert cmrc.exact_match(case["prediction"], case["references"]) == case["exact_match"]
    assert cmrc.f1(case["prediction"], case["references"]) == pytest.approx(case["f1"], abs=1e-12)


def test_cmrc_in_total_with_missing_predictions():
    references = {f"q{i}": case["references"] for i, case in enumerate(CMRC["cases"])}
    predictions = {f"q{i}": case["prediction"] for i, case in enumerate(CMRC["cases"]) if i not in CMRC["missing"]}
    found = score(references, predictions, scoring="cmrc")
    assert (found.exact_match, found.f1) == pytest.approx((CMRC["total"]["exact_match"], CMRC["total"]["f1"]))
    assert (found.missing, found.scoring) == (2, "cmrc")


def test_segments_are_characters_and_words():
    assert cmrc.segments("《Dr. Who》在BBC播出，共1,000集") == [
        "dr.", "who", "在", "bbc", "播", "出", "共", "1,000", "集"]
    assert cmrc.segments("") == cmrc.segments(" 。！") == []


def reference_cmrc(prediction, references):
    """Section 4.1 of Cui et al. 2019 for texts of Chinese characters, digits and plain words: segments by hand, and
    every pair of runs compared."""
    def segments(text):
        text = "".join(c for c in text.lower().strip() if c not in PUNCTUATION)
        return re.findall(r"[\u4e00-\u9fa5]|[a-z0-9]+", text)

    def common(one, other):
        return max((length for length in range(1, len(one) + 1) for i in range(len(one) - length + 1)
                    for j in range(len(other) - length + 1) if one[i : i + length] == other[j : j + length]), default=0)

    best = 0.0
    for reference in references:
        one, other = segments(prediction), segments(reference)
        if common(one, other):
            precision, recall = common(one, other) / len(one), common(one, other) / len(other)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


MIXED = st.text(alphabet="中國国二〇 ab1，。《》-", max_size=10)


@given(MIXED, st.lists(MIXED, min_size=1, max_size=3))
def test_cmrc_equals_a_reference_of_its_rule(prediction, references):
    assume_plain = [text.replace("〇", "") for text in (prediction, *references)]
    prediction, *references = assume_plain
    assert cmrc.f1(prediction, references) == pytest.approx(reference_cmrc(prediction, references))


@pytest.mark.parametrize("rule", RULES)
@given(st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_bounds_symmetry_and_best_reference(rule, prediction, references):
    rule = RULES[rule]
    for compare in (rule.exact_match, rule.f1):
        value = compare(prediction, references)
        assert 0.0 <= value <= 1.0
        if rule is not RULES["squad-v2"]:  # drops references of which nothing is left
            assert value == max(compare(prediction, [reference]) for reference in references)
        assert compare(prediction, references[:1]) == pytest.approx(compare(references[0], [prediction]))
    if rule.exact_match(prediction, references) and rule is RULES["squad-v2"]:
        assert rule.f1(prediction, references) == 1.0


@pytest.mark.parametrize(("text", "expected"), [
    ("don't", "do n't"), ("he's", "he 's"), ("they'll", "they 'll"), ("cannot", "can not"), ("gonna", "gon na"),
    ("1,000", "1,000"), ("a, b", "a , b"), ("3.14", "3.14"), ("the end.", "the end ."), ("(x)", "( x )"),
    ('"x"', "`` x ''"), ("$5", "$ 5"), ("what?!", "what ? !"), ("x...", "x ..."), ("u.s. navy", "u.s. navy"),
    ("one. two", "one . two"), ("mr. bean", "mr. bean"), ("no. 5", "no . 5"), ("j. smith", "j. smith"),
    ("'tis", "' tis"), ("a–b", "a – b"), ("", ""),
])
def test_english_words(text, expected):
    assert " ".join(words(text)) == expected


def test_sentences():
    assert sentences("one. two? three") == ["one.", "two?", "three"]
    assert sentences('he said "go." then left') == ['he said "go."', "then left"]


@pytest.mark.parametrize("case", V2["cases"], ids=lambda case: repr(case["prediction"][:20]))
def test_v2_equals_the_official_evaluation(case):
    assert squad_v2.exact_match(case["prediction"], case["references"]) == case["exact"]
    assert squad_v2.f1(case["prediction"], case["references"]) == pytest.approx(case["f1"], abs=1e-12)


REFERENCES = {f"q{i}": case["references"] for i, case in enumerate(V2["cases"])}
RAW = {f"q{i}": case["prediction"] for i, case in enumerate(V2["cases"])}
ODDS = {f"q{i}": case["null_odds"] for i, case in enumerate(V2["cases"])}


def test_v2_figures_equal_the_official_ones():
    plain = score(REFERENCES, RAW, scoring="squad-v2")
    assert figures(plain) == pytest.approx(V2["plain"])
    assert (plain.exact_match, plain.f1) == pytest.approx((V2["plain"]["exact"], V2["plain"]["f1"]))
    for threshold, official in V2["thresholds"].items():
        final = score(REFERENCES, thresholded(RAW, ODDS, float(threshold)), scoring="squad-v2")
        found = figures(final, plain, ODDS)
        # The program's threshold scores q12 as wrong, an empty prediction for the answer "the", its rule as right.
        if ODDS["q12"] <= float(threshold):
            assert found == pytest.approx(official)
        for name in ("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh", "NoAns_f1", "HasAns_total"):
            assert found[name] == pytest.approx(official[name])


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["", "x", "x y"]), st.integers(-5, 5)), min_size=1,
                max_size=12, unique_by=lambda row: row[2]))
def test_the_best_threshold_is_that_of_brute_force(rows):
    references = {str(i): ["x y"] if answerable else [] for i, (answerable, _, _) in enumerate(rows)}
    raw = {str(i): text for i, (_, text, _) in enumerate(rows)}
    odds = {str(i): float(value) for i, (_, _, value) in enumerate(rows)}
    for field, mean in (("em", "exact_match"), ("f1", "f1")):
        by_threshold = {t: getattr(score(references, thresholded(raw, odds, t), scoring="squad-v2"), mean)
                        for t in [-99.0, *odds.values()]}
        best, threshold = best_threshold(score(references, raw, scoring="squad-v2").per_question, field, odds)
        assert best == pytest.approx(max(by_threshold.values()))
        # Where answering none is best, the program says 0, which need not be a threshold that does that.
        none = threshold == 0.0 and by_threshold[-99.0] == pytest.approx(best)
        assert none or by_threshold[threshold] == pytest.approx(best)


def test_without_an_answer_only_nothing_is_right():
    for rule in ("squad-v2", "cmrc"):
        found = score({"a": [], "b": []}, {"a": "", "b": "x"}, scoring=rule)
        assert [(q.em, q.f1, q.answerable) for q in found.per_question] == [(1, 1, False), (0, 0, False)]
    with pytest.raises(UserError, match="--scoring squad-v2"):
        score({"a": []}, {}, scoring="squad")


def data(context, answer, version="1.1"):
    qas = [{"id": "a", "question": "?", "answers": [{"text": answer, "answer_start": 0}]}]
    whole = {"version": version, "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}
    return parse_squad(json.dumps(whole), "f", "evaluation")


@pytest.mark.parametrize(("context", "answer", "version", "rule"), [
    ("Rome is old.", "Rome", "1.1", "squad"), ("Rome is old.", "Rome", "v2.0", "squad-v2"),
    ("罗马很古老。", "罗马", "v1.0", "cmrc"), ("羅馬很古老。", "羅馬", "1.3", "cmrc"),
    ("成立于1998年。", "1998", "v1.0", "cmrc"),
    ("罗马很古老。", "罗马", "v2.0", "cmrc"), ("It is called 罗马 in Chinese, an old name.", "Chinese", "1.1", "squad"),
    ("It is called 罗马 in Chinese.", "罗马", "1.1", "cmrc"), ("1998", "1998", "1.1", "squad"),
])
def test_the_data_choose_the_rule(context, answer, version, rule):
    assert rule_for(data(context, answer, version)) == chosen_rule("auto", data(context, answer, version)) == rule
    assert f"({rule}, chosen by the data" in rule_line("auto", rule)
    assert "as given" in rule_line("squad", "squad")


def test_prompts_choose_by_their_completions():
    def prompts(text):
        return parse_jsonl(json.dumps({"prompt": "p", "completion": text}), "f", "evaluation")
    assert rule_for(prompts(" a dog")) == "squad" and rule_for(prompts("一只狗")) == "cmrc"


def test_the_english_rule_refuses_questions_without_an_answer():
    whole = {"data": [{"paragraphs": [{"context": "c", "qas": [
        {"id": "a", "question": "?", "answers": [], "is_impossible": True}]}]}]}
    with pytest.raises(UserError, match="1 of 1 questions have no reference answer"):
        chosen_rule("squad", parse_squad(json.dumps(whole), "f", "evaluation"))


def test_scores_by_different_rules_are_not_compared():
    one, other = (score({"a": ["北京"]}, {"a": "北"}, scoring=rule) for rule in ("squad", "cmrc"))
    assert (one.f1, other.f1) == (0, pytest.approx(200 / 3))
    with pytest.raises(UserError, match="base by squad, adapter by cmrc.*--scoring"):
        comparison_table(one, other)


def test_a_long_chinese_answer_is_scored_fast():
    draw = random.Random(0)
    texts = ["".join(draw.choice("的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会")
                     for _ in range(300)) for _ in range(2)]
    assert 0 < cmrc.f1(texts[0], texts[1:]) < 0.2
    assert normalize_answer(texts[0]) == texts[0]
