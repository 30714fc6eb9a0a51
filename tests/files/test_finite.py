from __future__ import annotations

import numpy as np
import pytest

from jittor_lora.files.finite import all_finite, kinds, not_finite

SIGNALLING = np.array([0x7F800001], np.uint32).view(np.float32)[0]


@pytest.mark.parametrize("array", [
    np.zeros((0, 3), np.float32), np.float32([3.4e38] * 9), np.float32([-3.4e38, 1e-45]), np.ones((4, 6), np.float32).T,
    np.float64([1e300, -1e300]), np.full((300, 300), 1e19, np.float32)])
def test_finite_numbers(array):
    """Including large ones, whose squares overflow."""
    assert all_finite(array) and not_finite({"x": array}) == {}


@pytest.mark.parametrize("wrong", [np.nan, SIGNALLING, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 10_000, 65_535])
@pytest.mark.parametrize("others", [0.0, 1.0, 1e30])
def test_one_bad_value_among_many(wrong, place, others):
    array = np.full(65_536, others, np.float32)
    array[place] = wrong
    assert not all_finite(array) and not all_finite(array.reshape(256, 256).T)


def test_the_report():
    array = np.float32([[np.nan, 1, np.inf], [-np.inf, 2, 3]])
    assert kinds(array) == "1 NaN and 2 infinite of 6 numbers"
    assert not_finite({"b": array, "a": np.ones(2), "c": np.full(2000, np.nan)}) == {
        "b": "1 NaN and 2 infinite of 6 numbers", "c": "2,000 NaN of 2,000 numbers"}
