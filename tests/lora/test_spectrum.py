from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.lora.combine import Factors
from jittor_lora.lora.spectrum import difference, singular_values, spectrum


def factors(seed: int, r: int, inputs: int = 20, outputs: int = 14, scaling: float = 1.5) -> Factors:
    draw = np.random.default_rng(seed)
    a, b = (draw.standard_normal(shape, np.float32) for shape in ((r, inputs), (outputs, r)))
    return Factors(a, b, scaling)


@given(st.integers(0, 99), st.integers(1, 30), st.floats(-3, 3).filter(lambda s: abs(s) > 1e-3))
def test_singular_values_are_those_of_the_update(seed, r, scaling):
    """Also where the rank is larger than the matrix."""
    pair = factors(seed, r, scaling=scaling)
    expected = np.linalg.svd(pair.scaling * pair.b.astype(float) @ pair.a.astype(float), compute_uv=False)
    found = singular_values(pair)
    np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], rtol=1e-6, atol=1e-9)
    norm, spectral, _ = spectrum(pair)
    np.testing.assert_allclose([norm, spectral], [np.linalg.norm(expected), expected[0]], rtol=1e-6)


def test_effective_rank_counts_directions_used_alike():
    def of(values):
        a = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 4)))[0].T
        return spectrum(Factors(a, np.eye(14, 4) * values, 1.0)).effective_rank
    assert of([1, 1, 1, 1]) == pytest.approx(4)
    assert of([5, 0, 0, 0]) == pytest.approx(1)
    shares = np.array([4, 2, 1, 1]) / 8
    assert of([4, 2, 1, 1]) == pytest.approx(math.exp(-np.sum(shares * np.log(shares))))


def test_an_update_of_zeros():
    zero = Factors(np.ones((2, 20), np.float32), np.zeros((14, 2), np.float32), 1.0)
    assert spectrum(zero) == (0, 0, 0)
    other = factors(0, 3)
    assert math.isnan(difference(zero, other).relative) and math.isnan(difference(zero, other).cosine)
    assert difference(other, zero).relative == pytest.approx(1) and math.isnan(difference(other, zero).cosine)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 6))
def test_differences_are_those_of_the_updates(seed, r, other_r):
    first, second = factors(seed, r), factors(seed + 100, other_r, scaling=0.5)
    one, other = (pair.scaling * pair.b.astype(float) @ pair.a.astype(float) for pair in (first, second))
    found = difference(first, second)
    assert found.relative == pytest.approx(np.linalg.norm(other - one) / np.linalg.norm(one), rel=1e-6)
    assert found.cosine == pytest.approx(np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-6)


def test_the_same_update_in_other_factors_does_not_differ():
    pair = factors(0, 3)
    turned = Factors(pair.a[::-1] * 2, pair.b[:, ::-1], pair.scaling / 2)
    assert difference(pair, turned).relative < 1e-12 and difference(pair, turned).cosine == pytest.approx(1)


def test_shapes_must_be_the_same():
    with pytest.raises(ValueError, match="different shapes"):
        difference(factors(0, 3), factors(0, 3, inputs=21))
