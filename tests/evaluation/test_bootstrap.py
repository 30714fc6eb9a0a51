from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest

from jittor_lora.errors import UserError
from jittor_lora.evaluation.bootstrap import (
    FEWEST_UNITS,
    mean_interval,
    paired_difference,
    resampled_sums,
    student_quantile,
)
from jittor_lora.evaluation.units import Units


def test_interval_of_a_proportion_is_close_to_the_normal_one():
    values = np.repeat([1.0, 0.0], [120, 280])
    estimate = mean_interval(values)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert estimate.mean == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)


def test_interval_covers_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        estimate = mean_interval(generator.random(60) < 0.4, resamples=1000, seed=trial)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 180 <= covered <= 198


def test_same_seed_same_interval_other_seed_another():
    values = np.random.default_rng(0).random(37)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_the_interval_of_many_values_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).random(20_000)
    found = mean_interval(values, resamples=2_000)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert found.low == pytest.approx(values.mean() - half, abs=half / 10)
    assert found.high == pytest.approx(values.mean() + half, abs=half / 10)


def test_memory_is_bounded_for_many_questions():
    values = np.random.default_rng(0).random(20_000)
    tracemalloc.start()
    mean_interval(values, resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # all at once would take 240 MB


@pytest.mark.parametrize("values", [[0.1] * 7, [0.0] * 5, [1.0] * 30])
def test_equal_values_are_their_own_interval(values):
    estimate = mean_interval(values)
    assert (estimate.low, estimate.high) == (values[0], values[0])
    assert estimate.mean == pytest.approx(values[0])


@pytest.mark.parametrize("values, units", [
    ([0.1], None),
    ([0.1, 0.7, 0.3, 0.4], None),
    ([0.0, 1.0] * 20, Units("paragraph", ("a", "b", "c", "d") * 10)),
])
def test_too_few_units_give_the_whole_scale(values, units):
    assert mean_interval(values, units).mean == pytest.approx(np.mean(values))
    ends = mean_interval(values, units, scale=(0, 100)), paired_difference(np.zeros(len(values)), values, units)
    assert [(one.low, one.high) for one in ends] == [(0, 100), (-1, 1)]
    assert mean_interval([*values] * FEWEST_UNITS).high < 1


def test_questions_of_one_unit_count_as_one():
    """Five answers that are always alike count no more than one."""
    first, second = np.random.default_rng(2).random((2, 30))
    units = Units("paragraph", tuple(np.repeat(np.arange(30), 5)))
    one, five = mean_interval(first), mean_interval(np.repeat(first, 5), units)
    assert (five.mean, five.low, five.high) == pytest.approx((one.mean, one.low, one.high))
    one, five = paired_difference(first, second), paired_difference(np.repeat(first, 5), np.repeat(second, 5), units)
    assert (five.low, five.high) == pytest.approx((one.low, one.high))
    assert five.p_value == one.p_value


def test_a_large_unit_counts_for_its_questions():
    """The mean is over questions, whatever the size of their units."""
    sizes = np.array([1, 2, 40, 3, 9, 5, 30, 4])
    units = Units("article", tuple(np.repeat(np.arange(8), sizes)))
    values = np.repeat([0.0, 0, 1, 0, 1, 0, 1, 0], sizes)
    estimate = mean_interval(values, units)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low < 0.5 < 0.75 < mean_interval(values).low  # the large units may not be drawn


def test_few_units_widen_the_interval():
    """As Student's t, and n − 1 in the variance, do for the mean of normal values."""
    values = np.random.default_rng(1).normal(0.5, 0.1, 10)
    half = 2.262157 * values.std(ddof=1) / np.sqrt(10)
    estimate = mean_interval(values)
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


@pytest.mark.parametrize("freedom, quantile", [(1, 12.7062), (2, 4.30265), (4, 2.77645), (15, 2.13145), (315, 1.96754)])
def test_student_t_quantiles(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=2e-4)
    assert student_quantile(0.025, freedom) == pytest.approx(-quantile, abs=2e-4)


def test_difference_finds_a_real_one_and_its_sign():
    generator = np.random.default_rng(3)
    first = generator.random(300)
    second = first + generator.normal(0.1, 0.3, 300)
    difference = paired_difference(first, second)
    assert 0 < difference.low < difference.mean < difference.high
    assert difference.p_value < 0.001
    swapped = paired_difference(second, first)
    assert (swapped.mean, swapped.p_value) == (-difference.mean, difference.p_value)


def test_p_value_equals_full_enumeration():
    first = np.array([0.2, 0.9, 0.4, 0.0, 0.5, 0.3, 0.8, 0.1])
    second = np.array([0.7, 1.0, 0.3, 0.6, 0.5, 0.9, 1.0, 0.0])
    differences = second - first
    sums = np.array(list(product((-1, 1), repeat=8))) @ differences
    exact = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
    assert paired_difference(first, second, resamples=40_000).p_value == pytest.approx(exact, abs=0.01)


def test_p_value_without_evidence_is_one():
    assert paired_difference([0.3] * 5, [0.3] * 5).p_value == 1.0
    assert paired_difference([0.0], [1.0]).p_value == 1.0  # one question proves nothing


def test_empty_and_unequal_inputs_are_refused():
    with pytest.raises(UserError, match="No questions"):
        mean_interval([])
    with pytest.raises(UserError, match="found 2 and 3"):
        paired_difference([0, 1], [0, 1, 1])


@pytest.mark.parametrize("resamples", [0, 1, 7])
def test_sums_of_any_number_of_resamples(resamples):
    statistics = np.array([[1.0, 10.0], [1.0, 20.0], [1.0, 30.0]])
    sums = resampled_sums(statistics, resamples)
    assert sums.shape == (resamples, 2)
    assert (sums[:, 0] == 3).all() and ((30 <= sums[:, 1]) & (sums[:, 1] <= 90)).all()
