from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.evaluation.cmrc import longest_common_run
from jittor_lora.evaluation.minimum_risk import by_expected_f1, highest_expected_f1
from jittor_lora.evaluation.scoring import RULES

WORDS = ["the", "a", "old", "Old", "city", "city's", "of", "Rome", "753", "?!", "10-12", "in"]
CHINESE = list("光荣和，。战国无双3 W-x")
TEXTS = {"squad": st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
         "squad-v2": st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
         "cmrc": st.lists(st.sampled_from(CHINESE), max_size=8).map("".join)}


def expected_f1(candidate, texts, weights, rule):
    """The definition."""
    total = 0.0
    for text, weight in zip(texts, weights):
        references = [text] if text or rule == "squad" else []  # an empty text is no answer
        total += weight * RULES[rule].f1(candidate, references)
    return total / sum(weights)


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
def test_pairs_score_as_one_by_one(rule, data):
    one, other = (data.draw(st.lists(TEXTS[rule], max_size=5)) for _ in range(2))
    found = RULES[rule].pairwise_f1(one, other)
    assert found.shape == (len(one), len(other))
    expected = [[expected_f1(a, [b], [1.0], rule) for b in other] for a in one]
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
def test_the_choice_is_that_of_brute_force(rule, data):
    texts = data.draw(st.lists(TEXTS[rule], min_size=1, max_size=7))
    weights = data.draw(st.lists(st.floats(1e-6, 1.0), min_size=len(texts), max_size=len(texts)))
    expected = [expected_f1(candidate, texts, weights, rule) for candidate in texts]
    index, value = highest_expected_f1(texts, weights, rule)
    assert value == pytest.approx(max(expected), abs=1e-9) == pytest.approx(expected[index], abs=1e-9)
    assert weights[index] == max(weight for weight, score in zip(weights, expected) if score >= max(expected) - 1e-10)


def test_the_likeliest_text_is_not_always_the_best():
    texts = ["Rome", "the old city of Rome", "old city of Rome,", "in the old city"]
    weights, expected = [0.4, 0.3, 0.2, 0.1], 0.4 * 2 / 5 + 0.3 + 0.2 + 0.1 * 2 * 2 / 7
    assert highest_expected_f1(texts, weights, "squad") == (1, pytest.approx(expected))
    assert highest_expected_f1(["光荣", "光荣和", "荣和战"], [0.4, 0.35, 0.25], "cmrc").index == 1
    assert highest_expected_f1(["Rome", "a Rome"], [0.4, 0.4], "squad") == (0, 1.0)  # equal: the first
    assert highest_expected_f1(["the Rome", "Rome"], [0.3, 0.4], "squad") == (1, 1.0)  # equal: the likelier
    assert highest_expected_f1(["the"], [1e-300], "squad") == (0, 0.0)


def test_all_texts_by_their_expected_f1():
    texts = ["Rome", "old city of Rome", "Paris", "a Rome"]
    found = by_expected_f1(texts, [0.4, 0.3, 0.1, 0.2], "squad")
    assert [choice.index for choice in found] == [0, 3, 1, 2]  # of equal ones the likelier first
    rome = 0.6 + 0.3 * 0.4
    assert [choice.expected_f1 for choice in found] == pytest.approx([rome, rome, 0.3 + 0.6 * 0.4, 0.1])


def test_rounding_errors_decide_nothing(monkeypatch):
    """Two scores that are equal but for rounding, on either side of half a unit in the ninth decimal."""
    scores = np.array([[0.5000000005 - 5e-13] * 3, [0.5000000005 + 5e-13] * 3, [0.7] * 3])
    monkeypatch.setitem(RULES, "squad", replace(RULES["squad"], pairwise_f1=lambda texts, references: scores))
    assert [choice.index for choice in by_expected_f1(["a", "b", "c"], [0.5, 0.3, 0.2], "squad")] == [2, 0, 1]


def test_rows_of_a_table_of_runs():
    one, other = ["无双3", "", "战国"], ["国无双", "战国无双3"]
    found = RULES["cmrc"].pairwise_f1(one, other)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            common = longest_common_run(list(a), list(b))
            assert found[i, j] == pytest.approx(2 * common / (len(a) + len(b)))
