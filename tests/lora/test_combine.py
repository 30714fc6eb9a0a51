from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.lora.combination import METHODS, PRUNING, Combination
from jittor_lora.lora.combine import Factors, combine, elected, keep_largest, random_mask


def factors(seed: int, r: int = 4, scaling: float = 2.0, inputs: int = 24, outputs: int = 30) -> Factors:
    draw = np.random.default_rng(seed)
    a, b = (draw.standard_normal(shape, np.float32) for shape in ((r, inputs), (outputs, r)))
    return Factors(a, b, scaling)


X, Y = factors(0), factors(1, r=3, scaling=0.5)
SUM = 0.7 * X.delta() - 1.5 * Y.delta()


def only(combined: dict[str, Factors]) -> Factors:
    assert list(combined) == ["m"]
    return combined["m"]


def settings(method: str, **options) -> Combination:
    return Combination(method, **{"density": 0.5 if method in PRUNING else None, **options})


def test_cat_is_the_weighted_sum():
    made = only(combine([{"m": X}, {"m": Y}], [0.7, -1.5], Combination("cat")))
    assert made.a.shape == (7, 24) and made.scaling == 1
    np.testing.assert_allclose(made.delta(), SUM, atol=1e-5)


def test_svd_is_the_nearest_of_its_rank():
    made = only(combine([{"m": X}, {"m": Y}], [0.7, -1.5], Combination("svd")))
    assert made.a.shape == (4, 24)
    values = np.linalg.svd(SUM, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(made.delta() - SUM), np.sqrt(np.sum(values[4:] ** 2)), rtol=1e-4)
    whole = only(combine([{"m": X}, {"m": Y}], [0.7, -1.5], Combination("svd", svd_rank=9)))
    assert whole.a.shape == (9, 24)
    np.testing.assert_allclose(whole.delta(), SUM, atol=1e-5)


def test_dare_keeps_the_sum_on_average():
    means = [only(combine([{"m": X}, {"m": X}], [0.5, 0.5], Combination("dare_linear_svd", 0.5, svd_rank=24, seed=s)))
             .delta() for s in range(200)]
    np.testing.assert_allclose(np.mean(means, axis=0), X.delta(), atol=5 * np.abs(X.delta()).max() / np.sqrt(200))


def test_dare_is_a_function_of_its_seed():
    def made(seed):
        return only(combine([{"m": X}, {"m": X}], [1, 1], Combination("dare_linear", 0.5, seed=seed))).a.tobytes()
    assert made(1) == made(1) != made(2)


def test_a_mask_keeps_its_share():
    assert abs(random_mask((1000, 100), 0.3, 7).mean() - 0.3) < 0.01
    assert not np.array_equal(random_mask((50,), 0.5, 7, 0), random_mask((50,), 0.5, 7, 1))


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=40, unique_by=abs), st.floats(0, 1))
def test_the_largest_are_kept(numbers, density):
    kept = keep_largest(np.array(numbers, np.float32), density)
    expected = sorted(numbers, key=abs)[len(numbers) - int(density * len(numbers)):]
    assert sorted(kept[kept != 0].tolist()) == sorted(n for n in expected if n)


def test_elections():
    values = np.array([[3, -1, 1, 0], [-1, -1, 1, 0], [-1, 4, -2, 0]], np.float32)
    assert elected(values, "total").tolist() == [[True, False, True, False], [False, False, True, False],
                                                 [False, True, False, False]]
    assert elected(values, "frequency").tolist() == [[False, True, True, False], [True, True, True, False],
                                                     [True, False, False, False]]


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_with_weight_one_is_itself(method):
    made = only(combine([{"m": X}], [1.0], settings(method)))
    np.testing.assert_allclose(made.delta(), X.delta(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_shapes_that_do_not_go_together(method):
    with pytest.raises(UserError, match="m: in 24, out 30.* against in 25, out 30"):
        combine([{"m": X}, {"m": factors(1, inputs=25)}], [1, 1], settings(method))


def test_a_rank_beyond_all_use():
    with pytest.raises(UserError, match="rank 5000"):
        combine([{"m": factors(i, r=2500)} for i in range(2)], [1, 1], Combination("cat"))


@pytest.mark.parametrize("values, expected", [
    ({"method": "sum"}, "method: expected one of linear, cat"),
    ({"method": "ties"}, "density: ties needs a number from 0 to 1, found None"),
    ({"method": "ties", "density": 1.5}, "found 1.5"),
    ({"method": "ties", "density": float("nan")}, "found nan"),
    ({"method": "dare_linear", "density": 0}, "density: dare_linear needs a number above 0 to 1, found 0"),
    ({"method": "cat", "density": 0.5}, "density: has no effect with cat"),
    ({"method": "cat", "svd_rank": 3}, "svd_rank: has no effect with cat"),
    ({"method": "ties", "density": 0.5, "svd_clamp": 0.9}, "svd_clamp: has no effect with ties"),
    ({"method": "svd", "svd_rank": 0}, "svd_rank: expected a whole number from 1"),
    ({"method": "svd", "svd_clamp": 2}, "svd_clamp: expected a number from 0 to 1"),
    ({"majority": "most"}, "majority: expected total or frequency"),
])
def test_settings_that_say_nothing(values, expected):
    with pytest.raises(UserError) as caught:
        Combination(**values)
    assert expected in str(caught.value)
