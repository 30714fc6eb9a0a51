"""benchmarks/coverage.py on a few samples: intervals over units cover the true score, those over questions do not."""

from __future__ import annotations

import pytest

from programs import load_program


@pytest.fixture(scope="module")
def coverage():
    return load_program("benchmarks/coverage.py")


@pytest.mark.parametrize("articles, questions, unit, about, least_alone", [
    (16, 200, "article", 0, 0.91),
    pytest.param(16, None, "article", 0, 0.75, marks=pytest.mark.slow),
    (9, 200, "paragraph", 1, 0.93),
])
def test_95_percent_cover_95_percent(coverage, monkeypatch, articles, questions, unit, about, least_alone):
    monkeypatch.setattr(coverage, "RESAMPLES", 300)
    drawn = list(coverage.samples(coverage.shipped_sizes(), articles, questions, 60, 200))
    found, alone = coverage.measured(drawn), coverage.measured(drawn, alone=True)
    assert found.unit == unit
    assert 0.92 <= found.covered[about] <= 0.98
    assert alone.covered[about] < least_alone
    assert found.alarms <= 0.08
