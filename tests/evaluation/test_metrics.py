from __future__ import annotations

import json

import pytest

from jittor_lora.errors import UserError
from jittor_lora.evaluation.metrics import read_metrics, summarize, write_metrics
from jittor_lora.evaluation.scoring import score

REFERENCES = {f"q{index}": ["x y"] for index in range(100)}
PREDICTIONS = {f"q{index}": "x y" if index < 30 else "x" if index < 50 else "z" for index in range(99)}


def test_summary_is_in_percent_with_intervals_around_the_means():
    metrics = summarize(score(REFERENCES, PREDICTIONS))
    assert (metrics.exact_match, metrics.count, metrics.missing) == (30.0, 100, 1)
    assert metrics.f1 == pytest.approx(30 + 20 * 2 / 3)
    assert 20 < metrics.exact_match_interval[0] < 30 < metrics.exact_match_interval[1] < 40
    assert 33 < metrics.f1_interval[0] < metrics.f1 < metrics.f1_interval[1] < 54


def test_round_trip_and_keys(tmp_path):
    metrics = summarize(score(REFERENCES, PREDICTIONS))
    write_metrics(tmp_path / "metrics.json", metrics, base="gpt2")
    assert read_metrics(tmp_path / "metrics.json") == metrics
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["exact_match"] == 30.0
    assert values["base"] == "gpt2"
    assert values["interval"] == {"method": "bootstrap of whole units, expanded percentiles", "confidence": 0.95,
                                  "resamples": 10_000}
    assert (values["unit"], values["units"]) == ("question", 100)


def test_a_file_from_before_units_were_written_is_read(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"exact_match": 41.5, "f1": 55.9, "count": 400, "missing": 0, '
                    '"exact_match_interval": [36.8, 46.3], "f1_interval": [51.3, 60.4], '
                    '"interval": {"method": "percentile bootstrap over questions"}}')
    metrics = read_metrics(path)
    assert (metrics.exact_match, metrics.f1_interval, metrics.sample) == (41.5, (51.3, 60.4), "400 questions")


def test_all_wrong_keys_are_named(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"exact_match": 101, "f1": "3", "count": 1.5, "missing": -1, "exact_match_interval": [3, 2], '
                    '"unit": ["article"], "units": "many"}')
    with pytest.raises(UserError) as caught:
        read_metrics(path)
    for key in ("exact_match: expected a percentage", "f1: expected a percentage from 0 to 100, found '3'",
                "count: expected a whole number, found 1.5", "missing: expected", "exact_match_interval: expected",
                "unit: expected one of article, paragraph, prompt, question, found ['article']",
                "units: expected a whole number, found 'many'",
                "f1_interval: expected [low, high] in percent, found None"):
        assert key in str(caught.value)


@pytest.mark.parametrize("content", ["[1]", "{", '{"exact_match": NaN}', '{"exact_match": true}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match="metrics.json"):
        read_metrics(tmp_path / "metrics.json")
