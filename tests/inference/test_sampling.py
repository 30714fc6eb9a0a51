from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.inference.sampling import Sampler, Sampling, probabilities

# All different, so that "the likeliest" is one set.
LOGITS = st.lists(st.integers(-80, 80), min_size=1, max_size=12, unique=True).map(
    lambda quarters: np.array(quarters, np.float32) / 4)


def brute_force(logits, temperature, top_k, top_p):
    """The distribution when the likeliest tokens are taken one at a time; and the masses they reached."""
    odds = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-logits)[: top_k or None]
    odds /= odds[order].sum()
    masses = np.cumsum(odds[order])
    kept = order[: 1 + int((masses < top_p).sum())]
    result = np.zeros(len(logits))
    result[kept] = odds[kept] / odds[kept].sum()
    return result, masses


@given(LOGITS, st.floats(0.2, 3), st.integers(0, 13), st.floats(0.01, 1))
def test_distribution_is_that_of_the_brute_force(logits, temperature, top_k, top_p):
    expected, masses = brute_force(logits.astype(np.float64), temperature, top_k, top_p)
    assume(top_p == 1 or np.abs(masses - top_p).min() > 1e-9)  # else rounding decides on which side a token is
    np.testing.assert_allclose(probabilities(logits, Sampling(temperature, top_k, top_p)), expected, atol=1e-12)


def test_top_k_keeps_all_that_equal_the_kth():
    assert (probabilities(np.array([1.0, 3.0, 2.0, 2.0]), Sampling(1.0, top_k=2)) > 0).tolist() == [False, *[True] * 3]


def test_top_p_keeps_the_likeliest_even_if_it_is_enough_alone():
    found = probabilities(np.array([9.0, 1.0, 1.0]), Sampling(1.0, top_p=0.01))
    np.testing.assert_array_equal(found, [1, 0, 0])


def test_top_p_counts_what_top_k_left():
    """Of odds 4:3:2:1, the two that top-k leaves are 4/7 and 3/7; 0.5 is then reached by the first."""
    logits = np.log(np.array([4.0, 3.0, 2.0, 1.0]))
    np.testing.assert_allclose(probabilities(logits, Sampling(1.0, top_k=2, top_p=0.5)), [1, 0, 0, 0])
    np.testing.assert_allclose(probabilities(logits, Sampling(1.0, top_p=0.5)), [4 / 7, 3 / 7, 0, 0])


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_a_temperature_next_to_zero_is_greedy(temperature):
    found = probabilities(np.array([1.0, 2.0, -50.0, 1.5]), Sampling(temperature))
    np.testing.assert_allclose(found, [0, 1, 0, 0], atol=1e-100)


def test_draws_follow_the_distribution():
    logits, settings = np.array([1.0, 2.0, 0.0, -1.0], np.float32), Sampling(0.8, top_k=3, seed=5)
    sampler, draws = Sampler(settings), 4000
    counts = np.bincount([sampler.choose(logits, ()) for _ in range(draws)], minlength=4)
    expected = probabilities(logits, settings) * draws
    assert counts[3] == 0
    assert ((counts - expected)[:3] ** 2 / expected[:3]).sum() < 13.8  # chi-squared, 2 degrees of freedom, p = 0.001


def test_the_seed_decides():
    logits = np.zeros(1000, np.float32)

    def drawn(seed):
        sampler = Sampler(Sampling(1.0, seed=seed))
        return [sampler.choose(logits, ()) for _ in range(5)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(0) != drawn(1)


def test_every_text_has_a_stream_of_its_own():
    logits = np.zeros(1000, np.float32)
    first = [Sampler(Sampling(1.0, seed=3), number).choose(logits, ()) for number in range(9)]
    assert len(set(first)) > 6


def test_repetition_penalty_divides_the_positive_and_multiplies_the_rest():
    logits = np.array([4.0, 3.9, -1.0, -1.5, 0.0], np.float32)
    before = logits.copy()
    sampler = Sampler(Sampling(repetition_penalty=2.0))
    assert sampler.choose(logits, []) == 0
    assert sampler.choose(logits, [0, 0]) == 1  # 4 / 2 is below 3.9; twice seen counts once
    assert sampler.choose(logits, [0, 1]) == 0
    assert sampler.choose(logits[2:4], [0]) == 1  # -1 · 2 is below -1.5
    np.testing.assert_array_equal(logits, before)  # the caller's logits are left alone


def test_all_that_is_wrong_is_in_one_error():
    with pytest.raises(UserError) as caught:
        Sampling(temperature=-1, top_k=-1, top_p=0, repetition_penalty=0, seed=-1)
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed"):
        assert name in str(caught.value)


@pytest.mark.parametrize("settings", [{"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 1.1},
                                      {"repetition_penalty": float("nan")}])
def test_numbers_that_are_none_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)
