from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from jittor_lora import ops
from jittor_lora.system.runtime import jt
from jittor_lora.training.optimizer import AdamW, clip_scale, gradient_norm

SHAPES = {"a": (3, 4), "b": (5,)}


def values(seed):
    draw = np.random.RandomState(seed)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def arrays(numbers):
    return {name: jt.array(x) for name, x in numbers.items()}


def exact_adamw(parameters, gradients, rates, beta1, beta2, epsilon, decay):
    """Loshchilov and Hutter 2019, algorithm 2, to the letter, in float64; decay is multiplied by the rate."""
    for name, theta in parameters.items():
        theta = theta.astype(np.float64)
        m, v = np.zeros_like(theta), np.zeros_like(theta)
        for t, (gradient, rate) in enumerate(zip(gradients, rates), 1):
            g = gradient[name].astype(np.float64)
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            corrected_m, corrected_v = m / (1 - beta1**t), v / (1 - beta2**t)
            theta = theta - rate * corrected_m / (np.sqrt(corrected_v) + epsilon) - rate * decay * theta
        yield name, theta


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("betas, epsilon, decay", [((0.9, 0.999), 1e-8, 0.0), ((0.8, 0.95), 1e-3, 0.1)])
def test_steps_are_those_of_the_paper(betas, epsilon, decay, portable):
    parameters = arrays(values(0))
    optimizer = AdamW(parameters, betas, epsilon, decay)
    gradients, rates = [values(seed) for seed in range(1, 13)], [0.01 * step for step in range(12)]
    with ops.portable_operations("optimizer") if portable else nullcontext():
        for gradient, rate in zip(gradients, rates):
            optimizer.step(arrays(gradient), rate)
    for name, expected in exact_adamw(values(0), gradients, rates, *betas, epsilon, decay):
        np.testing.assert_allclose(parameters[name].numpy(), expected, rtol=2e-6, atol=1e-6)
        assert not parameters[name].is_stop_grad()


def test_a_rate_of_zero_moves_only_the_moments():
    parameters = arrays(values(0))
    optimizer = AdamW(parameters, weight_decay=0.5)
    optimizer.step(arrays(values(1)), 0.0)
    for name, before in values(0).items():
        np.testing.assert_array_equal(parameters[name].numpy(), before)
    np.testing.assert_allclose(optimizer.state()["first.a"], 0.1 * values(1)["a"], rtol=1e-5)
    np.testing.assert_allclose(optimizer.state()["second.b"], 0.001 * values(1)["b"] ** 2, rtol=1e-5)


def test_zero_gradients_leave_a_new_parameter_unchanged():
    parameters = {"b": jt.zeros(4)}
    optimizer = AdamW(parameters, weight_decay=0.1)
    for _ in range(3):
        optimizer.step({"b": jt.zeros(4)}, 1.0)
    assert parameters["b"].numpy().tolist() == [0, 0, 0, 0]


def test_a_restored_optimizer_continues_bit_for_bit():
    gradients = [values(seed) for seed in range(1, 7)]

    def after(optimizer, parameters, some):
        for gradient in some:
            optimizer.step(arrays(gradient), 0.01)
        return {name: p.numpy().copy() for name, p in parameters.items()}

    parameters = arrays(values(0))
    through = AdamW(parameters)
    expected = after(through, parameters, gradients)

    parameters = arrays(values(0))
    first = AdamW(parameters)
    stopped = after(first, parameters, gradients[:3])
    moments = {name: array.copy() for name, array in first.state().items()}
    parameters = arrays(stopped)
    second = AdamW(parameters)
    second.load_state(moments, steps=first.steps)
    found = after(second, parameters, gradients[3:])
    for name in SHAPES:
        assert found[name].tobytes() == expected[name].tobytes()
        for kind in ("first", "second"):
            assert second.state()[f"{kind}.{name}"].tobytes() == through.state()[f"{kind}.{name}"].tobytes()


def test_names_of_the_state():
    assert set(AdamW(arrays(values(0))).state()) == {"first.a", "first.b", "second.a", "second.b"}


def test_steps_do_not_pile_up():
    parameters = arrays(values(0))
    optimizer, alive = AdamW(parameters), []
    for seed in range(5):
        optimizer.step(arrays(values(seed)), 0.01)
        alive.append(jt.liveness_info()["lived_vars"])
    assert len(set(alive[1:])) == 1


def test_gradient_norm_is_that_of_all_gradients_as_one_vector():
    numbers = values(3)
    expected = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in numbers.values()))
    assert gradient_norm(arrays(numbers)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(wrong):
    numbers = values(3)
    numbers["a"][1, 2] = wrong
    assert not np.isfinite(gradient_norm(arrays(numbers)))


@pytest.mark.parametrize("norm, limit, expected", [(4.0, 1.0, 0.25), (0.5, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0),
                                                   (1e9, 0.0, 1.0)])
def test_clip_scale(norm, limit, expected):
    assert clip_scale(norm, limit) == pytest.approx(expected, rel=2e-6)
    assert clip_scale(norm, limit) <= expected
