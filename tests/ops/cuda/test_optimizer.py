"""AdamW and squared norms of the CUDA backend against their definitions, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuda_emulator import DESCENDING, SHUFFLED, launches, thread_order
from jittor_lora.ops import fused, portable
from jittor_lora.system.runtime import jt
from kernel_comparison import normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")
few = settings(max_examples=10, deadline=None)
sizes = st.tuples(st.integers(1, 70), st.integers(1, 90))


def step(operation, shapes, factor=0.37, spoiled=None):
    """A step of AdamW on arrays of these shapes: parameters, first and second moments, as one list."""
    draws = [[normal(*shape, seed=4 * i + j) for i, shape in enumerate(shapes)] for j in range(4)]
    draws[3] = [second**2 for second in draws[3]]
    if spoiled is not None:
        draws[1][0].flat[0] = spoiled
    rates = [1e-2 * (1 + i % 3) for i in range(len(shapes))]
    made = operation(*([jt.array(x) for x in arrays] for arrays in draws), (0.9, 0.999),
                     [1.0 - 0.1 * rate for rate in rates], rates, 0.7, 1e-8, factor)
    return [array.numpy() for arrays in made for array in arrays]


def check_step(shapes, factor=0.37):
    found, expected = step(fused.adamw, shapes, factor), step(portable.adamw, shapes, factor)
    assert len(found) == len(expected) == 3 * len(shapes)
    for f, e in zip(found, expected):
        np.testing.assert_allclose(f, e, rtol=2e-6, atol=1e-6)


@few
@given(st.lists(sizes, min_size=1, max_size=3), st.sampled_from([1.0, 0.37]))
@example([(1, 1)], 0.5)
@example([(64, 64), (3, 5), (4, 1024)], 0.5)
def test_a_step_of_adamw(shapes, factor):
    check_step(shapes, factor)


def many_shapes():
    draw = np.random.RandomState(0)
    return [(int(draw.randint(1, 9)), int(draw.randint(1, 40))) for _ in range(299)] + [(3, 1500)]


def test_three_hundred_arrays_in_one_launch():
    before = launches()
    check_step(many_shapes())
    assert launches() - before == 1


@few
@given(st.lists(sizes, min_size=1, max_size=4))
@example([(1, 1)])
def test_squared_norms(shapes):
    check_norms(shapes)


def check_norms(shapes):
    arrays = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    found = fused.squared_norms([jt.array(array) for array in arrays]).numpy()
    np.testing.assert_allclose(found, [np.square(array, dtype=np.float64).sum() for array in arrays], rtol=1e-5)


def test_squared_norms_of_three_hundred_arrays_in_two_launches():
    before = launches()
    check_norms([*many_shapes(), (33, 1000), (70, 701)])  # the last ones in several blocks
    assert launches() - before == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_place(value):
    made = step(fused.adamw, [(2, 4), (3, 3)], spoiled=value)
    for i, array in enumerate(made):
        assert (~np.isfinite(array)).sum() == (i % 2 == 0)
    found = fused.squared_norms([jt.array(np.array([1, value], np.float32)), jt.array(np.ones(3, np.float32))]).numpy()
    assert not np.isfinite(found[0]) and found[1] == 3


@pytest.mark.parametrize("order", [DESCENDING, SHUFFLED])
def test_the_order_of_threads_does_not_matter(order):
    def results():
        norms = fused.squared_norms([jt.array(normal(20, 900)), jt.array(normal(3, 7))]).numpy()
        return [norms, *step(fused.adamw, [(9, 300), (5, 5)])]

    expected = results()
    with thread_order(order):
        for found, same in zip(results(), expected):
            assert (found == same).all()
