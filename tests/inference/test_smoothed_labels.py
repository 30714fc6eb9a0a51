from __future__ import annotations

import numpy as np
import pytest

from jittor_lora.inference.smoothed_labels import LEAST_KEPT, before_smoothing


@pytest.mark.parametrize("smoothing", [1e-6, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("size", [2, 50, 50_000])
def test_a_model_that_has_learnt_smoothed_labels(smoothing, size):
    """The labels' own probabilities come back from those of the model that fits them best."""
    p = np.random.default_rng(size).dirichlet(np.full(size, 0.1))
    q = (1 - smoothing) * p + smoothing / size
    assert q.sum() == pytest.approx(1)
    likely = p > 1e-3 / size
    np.testing.assert_allclose(before_smoothing(np.log(q), smoothing, size)[likely], np.log(p)[likely], atol=1e-6)
    both = before_smoothing(float(np.log(q[0] + q[1])), smoothing, size, tokens=2)
    assert np.exp(both) == pytest.approx(p[0] + p[1], abs=1e-9)


def test_without_smoothing_nothing_changes():
    logs = np.array([-0.1, -5.0, -np.inf], np.float32)
    assert before_smoothing(logs, 0.0, 10) is logs


def test_what_no_such_model_says():
    """Surer than smoothed labels allow, or less sure than smoothing alone makes it: 1 at most, and above 0."""
    logs = np.array([0.0, np.log(0.95), np.log(0.91), np.log(0.011), np.log(0.01), np.log(1e-9), -800.0])
    found = before_smoothing(logs, 0.1, 10)
    assert np.all(np.diff(found) <= 0) and list(found[:2]) == [0.0, 0.0]  # 0.95 > 0.9 + 0.01
    assert found[3] == pytest.approx(np.log(0.001 / 0.9))
    assert found[4] == pytest.approx(np.log(LEAST_KEPT * 0.01)) and found[5] == pytest.approx(np.log(LEAST_KEPT * 1e-9))
    assert np.isfinite(found).all()


def test_each_token_costs_what_smoothing_took():
    assert before_smoothing(np.log(0.9), 0.1, 50_000) == pytest.approx(0, abs=3e-6)
    assert before_smoothing(np.log(0.45), 0.1, 50_000) == pytest.approx(np.log(0.5), abs=1e-5)
