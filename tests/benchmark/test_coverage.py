"""benchmarks/coverage.py on a few samples: intervals hold what they are about; question by question they do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("articles, questions, unit, about, least_alone", [
    (16, 200, "article", 0, 0.91),
    (16, None, "article", 0, 0.75),
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
