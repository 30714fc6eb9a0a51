from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.test_standings import REFERENCES
from jittor_lora.evaluation.curve_chart import curve_chart
from jittor_lora.evaluation.metrics import Metrics
from jittor_lora.evaluation.scoring import score
from jittor_lora.evaluation.seeds import (
    runs_json,
    runs_of,
    runs_table,
    spread,
    text_runs_table,
    text_spreads,
    welch_difference,
)
from jittor_lora.evaluation.standings import standings
from jittor_lora.evaluation.systems import System
from jittor_lora.evaluation.text import TextScore


def test_student_and_welch_by_tables():
    """t at 97.5 %: 12.706 for 1 degree of freedom, 4.303 for 2."""
    two, three = spread([70.0, 72.0]), spread([60.0, 61.0, 65.0])
    assert (two.mean, two.deviation) == (71, pytest.approx(math.sqrt(2)))
    assert two.high - two.mean == pytest.approx(12.706, abs=1e-3)
    assert three.deviation == pytest.approx(math.sqrt(7))
    assert three.mean - three.low == pytest.approx(4.3027 * math.sqrt(7 / 3), abs=1e-3)
    # Equal deviations and counts: 2 (n - 1) = 4 degrees of freedom, 2.776.
    found = welch_difference(spread([1.0, 2.0, 3.0]), spread([4.0, 5.0, 6.0]))
    assert (found.mean, found.high - found.mean) == (3, pytest.approx(2.7764 * math.sqrt(2 / 3), abs=1e-3))


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_welch_is_antisymmetric_and_never_narrower_than_its_freest_case(first, second):
    one, other = spread(first), spread(second)
    there, back = welch_difference(one, other), welch_difference(other, one)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    error = math.sqrt(one.deviation**2 / one.count + other.deviation**2 / other.count)
    assert there.high - there.mean >= 1.95 * error - 1e-9


def test_the_interval_holds_the_mean_of_normal_runs_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = [one.low <= 5.0 <= one.high for one in map(spread, draw.normal(5.0, 2.0, (2000, 3)).tolist())]
    assert 0.935 < np.mean(held) < 0.965


def run(name, right):
    return System(name, score(REFERENCES, {f"q{i}": "x y" if right(i) else "z" for i in range(100)}))


def test_runs_of_systems():
    systems = [run("full 1", lambda i: i < 60), run("full 2", lambda i: i < 62), run("other", lambda i: i < 10),
               run("lora 1", lambda i: i < 50), run("lora 2", lambda i: i < 53)]
    full, lora = runs_of(systems, {"full": ["full 1", "full 2"], "lora": ["lora 1", "lora 2"]})
    assert (full.f1.mean, full.f1.count, full.f1_gain, full.f1_difference) == (61, 2, None, None)
    assert (lora.exact_match.mean, lora.exact_match_gain.mean) == (51.5, -9.5)
    assert lora.f1_gain == welch_difference(spread([60, 62]), spread([50, 53]))
    table = runs_table([full, lora]).splitlines()
    assert table[2].split()[:4] == ["lora", "2", "51.50", "2.12"]
    assert table[3].endswith("for new seeds on the same questions")
    assert [line.split()[0] for line in table[5:7]] == ["EM", "lora"] and table[6].count("-9.50") == 2
    assert "against full" in table[7] and "new questions" in table[7]
    assert "gain" not in runs_table([full])
    assert json.loads(json.dumps(runs_json([full, lora])))[1]["f1"]["deviation"] == pytest.approx(1.5 * math.sqrt(2))
    assert runs_of(systems, {}) == []


def test_gains_on_new_questions_are_those_of_each_questions_mean_over_runs():
    """Runs that agree in their means but not in their questions: seeds say that the gain is certain, questions that it
    is not."""
    before = [run("a 1", lambda i: i % 10 < 5), run("a 2", lambda i: i % 10 < 5)]
    after = [run("b 1", lambda i: i % 10 > 3), run("b 2", lambda i: i % 10 > 3)]
    _, gained = runs_of([*before, *after], {"a": ["a 1", "a 2"], "b": ["b 1", "b 2"]})
    seeds, questions = gained.f1_gain, gained.f1_difference
    assert seeds.mean == seeds.low == seeds.high == pytest.approx(10) and questions.mean == pytest.approx(10)
    assert questions.low < 0 < 20 < questions.high and 0.1 < questions.p_value < 1
    alone = standings([before[0], after[0]], seed=3)[1]
    _, gained = runs_of([*before, *after], {"a": ["a 1", "a 2"], "b": ["b 1", "b 2"]}, seed=3)
    assert gained.f1_difference == alone.f1 and gained.exact_match_difference == alone.exact_match


def test_p_values_are_adjusted_for_the_number_of_systems():
    rights = {"a": lambda i: i < 50, "b": lambda i: 10 <= i < 70, "c": lambda i: i < 51}
    systems = [run(f"{name} {seed}", right) for name, right in rights.items() for seed in (1, 2)]
    groups = {name: [f"{name} 1", f"{name} 2"] for name in rights}
    _, alone = runs_of(systems, {name: groups[name] for name in "ab"})
    _, together, _ = runs_of(systems, groups)
    assert together.f1_difference.p_value == pytest.approx(2 * alone.f1_difference.p_value)
    assert together.f1_gain == alone.f1_gain


def test_a_text_score_that_a_run_lacks_is_absent():
    texts = {name: {"all": {"BLEU": TextScore(value, ""), "METEOR": TextScore(meteor, "")}}
             for name, value, meteor in (("a 1", 50.0, None), ("a 2", 52.0, 30.0), ("b 1", 40.0, 31.0),
                                         ("b 2", 40.0, 33.0))}
    found = text_spreads(texts, {"a": ["a 1", "a 2"], "b": ["b 1", "b 2"]})
    assert found["a"]["all"] == {"BLEU": spread([50, 52])} and found["b"]["all"]["METEOR"] == spread([31, 33])
    bleu, meteor = (line.split() for line in text_runs_table(found).splitlines()[1:3])
    assert bleu[:3] == ["BLEU", "51.00", "1.41"] and meteor[:3] == ["METEOR", "absent", "32.00"]


def test_the_chart_of_seeds_has_their_means_and_no_scale_of_numbers():
    points = [(seed, Metrics(60 + i, 70 + i, 400, 0, (55.0, 65.0), (66.0, 75.0), "paragraph", 40))
              for i, seed in enumerate((1, 2, 1003))]
    axes, = curve_chart("seed", points, points[0][1]).axes
    assert axes.get_title(loc="left") == "Scores by seed" and axes.get_xscale() == "linear"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "1003"]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("F1 71.0" in label for label in labels) and any("61.0" in label for label in labels)
