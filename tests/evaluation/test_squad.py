from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.evaluation.scoring import score
from jittor_lora.evaluation.squad import exact_match, f1, normalize_answer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "squad_official.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: repr(case["prediction"][:20]))
def test_equals_the_official_evaluation(case):
    prediction, references = case["prediction"], case["references"]
    assert normalize_answer(prediction) == case["normalized"]
    assert exact_match(prediction, references) == case["exact_match"]
    assert f1(prediction, references) == case["f1"]


def test_total_equals_the_official_evaluation_with_missing_predictions():
    references = {f"q{index}": case["references"] for index, case in enumerate(GOLDEN["cases"])}
    predictions = {f"q{index}": case["prediction"] for index, case in enumerate(GOLDEN["cases"])
                   if index not in GOLDEN["missing"]}
    result = score(references, predictions)
    # Python 3.12 sums floats more exactly than earlier versions.
    assert (result.exact_match, result.f1) == pytest.approx((GOLDEN["total"]["exact_match"], GOLDEN["total"]["f1"]),
                                                            rel=1e-12)
    assert (result.count, result.missing) == (len(GOLDEN["cases"]), len(GOLDEN["missing"]))
    assert [question.id for question in result.per_question if question.prediction is None] == [
        f"q{index}" for index in GOLDEN["missing"]]


def test_nothing_left_after_normalising_is_an_exact_match_with_f1_zero():
    assert (exact_match("the", ["?!"]), f1("the", ["?!"])) == (1.0, 0.0)


def test_best_reference_counts_and_predictions_for_other_questions_do_not():
    result = score({"q": ["Denver", "Denver Broncos"]}, {"q": "the Denver Broncos!", "other": "x"})
    assert (result.exact_match, result.f1, result.count, result.missing) == (100.0, 100.0, 1, 0)


def test_an_empty_prediction_is_not_a_missing_one():
    result = score({"q": ["Denver"]}, {"q": ""})
    assert (result.f1, result.missing, result.per_question[0].prediction) == (0.0, 0, "")


def test_empty_data_and_questions_without_references_are_refused():
    with pytest.raises(UserError, match="No questions"):
        score({}, {})
    with pytest.raises(UserError, match="2 of 3 questions have no reference answer.*: b, c"):
        score({"a": ["x"], "b": [], "c": []}, {})
    with pytest.raises(ValueError):
        f1("x", [])


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_bounds_and_symmetry(prediction, references):
    value = f1(prediction, references)
    assert 0.0 <= value <= 1.0
    assert f1(prediction, references[:1]) == pytest.approx(f1(references[0], [prediction]))
    if exact_match(prediction, references) and normalize_answer(prediction):
        assert value == 1.0
