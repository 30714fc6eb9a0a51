from __future__ import annotations

import pytest

from jittor_lora.errors import UserError
from jittor_lora.evaluation.compare import comparison_table, display_width, table
from jittor_lora.evaluation.scoring import score

REFERENCES = {f"q{index}": ["x y"] for index in range(200)}
BASE = score(REFERENCES, {f"q{index}": "x y" if index % 10 == 0 else "z" for index in range(198)})
ADAPTER = score(REFERENCES, {f"q{index}": "x y" if index % 2 == 0 else "x" for index in range(200)})


def test_table_holds_both_scores_their_difference_and_p_value():
    lines = comparison_table(BASE, ADAPTER).splitlines()
    exact_match, f1 = lines[1].split(), lines[2].split()
    assert lines[0].split() == ["base", "95", "%", "adapter", "95", "%", "difference", "95", "%", "p"]
    assert [exact_match[2], exact_match[5], exact_match[8], exact_match[11]] == ["10.00", "50.00", "+40.00", "0.0001"]
    assert [f1[1], f1[4], f1[7]] == ["10.00", "83.33", "+73.33"]
    assert lines[3] == "200 questions, scores in percent; 95 % intervals are for new questions"
    assert lines[4] == "base: 2 of 200 questions without a prediction count as 0"


@pytest.mark.parametrize("names", [("base", "adapter"), ("\u57fa\u5ea7\u6a21\u578b", "\u52a0\u9002\u914d\u5668")])
def test_columns_align_on_a_terminal(names):
    lines = comparison_table(BASE, ADAPTER, names).splitlines()[:3]
    assert len({display_width(line) for line in lines}) == 1
    ends = [display_width(lines[0][:lines[0].index(names[1]) + len(names[1])])]
    ends += [display_width(line[:line.index(value) + 5]) for line, value in zip(lines[1:], ("50.00", "83.33"))]
    assert len(set(ends)) == 1


def test_width_of_wide_and_combining_characters():
    assert display_width("\u5317\u4eac") == 4
    assert display_width("cafe\u0301") == 4
    assert display_width("\uff21b") == 3
    assert display_width("a\u200bb") == 2


def test_first_column_is_left_and_others_right():
    assert table([("a", "1", "22"), ("bbb", "333", "4")]) == "a      1  22\nbbb  333   4"


def test_questions_of_a_paragraph_are_resampled_and_swapped_together():
    places = {name: ("article", f"paragraph {index // 40}") for index, name in enumerate(REFERENCES)}
    right = dict.fromkeys(list(REFERENCES)[:80], "x y")
    lines = comparison_table(score(REFERENCES, {}, places), score(REFERENCES, right, places)).splitlines()
    assert lines[3].startswith("200 questions of 5 paragraphs, ") and lines[3].endswith("for new paragraphs")
    low, high = map(float, lines[1].split("[")[2].split("]")[0].split(", "))
    assert low == 0 and high > 90  # 33 to 47 if questions were independent
    assert float(lines[1].split()[-1]) == pytest.approx(0.5, abs=0.02)  # of 32 swaps, 16 are as extreme


def test_other_questions_are_refused():
    with pytest.raises(UserError, match="different questions"):
        comparison_table(BASE, score({"other": ["x"]}, {}))
