"""The token found with bounds from an 8-bit copy of the head is the one that all logits give, whatever the head."""

from __future__ import annotations

import numpy as np
import pytest

from jittor_lora.errors import UserError
from jittor_lora.ops import Matrix
from jittor_lora.ops.cpu import packing
from jittor_lora.ops.cpu.decoder import Decoder
from jittor_lora.ops.decoding import LayerWeights, LinearWeights, NetworkWeights, NormWeights, Reading, Sizes
from needs import PRECISIONS, needs_kernels

pytestmark = needs_kernels


def network(head: np.ndarray | Matrix, precision: str = "fp32", gain: float = 1.0) -> Decoder:
    """Its layer adds nothing, so that the head meets the embedded rows x as gain · x / √(mean of x²)."""
    matrix = head if isinstance(head, Matrix) else Matrix.of(head, precision)
    width = matrix.shape[1]

    def zeros(outputs: int, inputs: int) -> LinearWeights:
        return LinearWeights(Matrix.of(np.zeros((outputs, inputs), np.float32), precision))

    norm = NormWeights(np.full(width, gain, np.float32))
    layer = LayerWeights(norm, [zeros(24, width)], zeros(width, 8), norm, [zeros(8, width)], zeros(width, 8))
    sizes = Sizes(1, width, 1, 1, 8, 8, True, "relu", 0.0, precision)
    return Decoder(NetworkWeights(sizes, [layer], norm, matrix))


def ask(method, states: np.ndarray) -> np.ndarray:
    network = method.__self__
    readings = [Reading(network.new_span(1), None, 1, True, None) for _ in states]
    return method(states, np.zeros(len(states), np.int32), readings)


def check(head: np.ndarray, states: np.ndarray, **more) -> None:
    found = network(np.ascontiguousarray(head, np.float32), **more)
    expected = ask(found.logits, states.astype(np.float32)).argmax(1)
    np.testing.assert_array_equal(ask(found.likeliest, states.astype(np.float32)), expected)


def outlying(draw, rows: int, width: int) -> np.ndarray:
    return draw.standard_normal((rows, width)) * 10 ** draw.uniform(-4, 4, width)


def of_all_sizes(draw, rows: int, width: int) -> np.ndarray:
    return draw.standard_normal((rows, width)) * 10 ** draw.uniform(-30, 30, (rows, 1)).astype(np.float32)


def nearly_equal(draw, rows: int, width: int) -> np.ndarray:
    return draw.standard_normal(width) * (1 + 1e-7 * draw.randint(-2, 3, (rows, 1)))


def mostly_zeros(draw, rows: int, width: int) -> np.ndarray:
    return draw.standard_normal((rows, width)) * (draw.random_sample((rows, 1)) < 0.1)


HEADS = {
    "random": lambda draw, rows, width: draw.standard_normal((rows, width)),
    "in common": lambda draw, rows, width: 300 * draw.standard_normal(width) + draw.standard_normal((rows, width)),
    "nearly equal": nearly_equal,
    "equal": lambda draw, rows, width: np.tile(draw.standard_normal(width), (rows, 1)),
    "every row twice": lambda draw, rows, width: draw.standard_normal((rows // 2 + 1, width)).repeat(2, 0)[:rows],
    "outlying columns": outlying,
    "rows of all sizes": of_all_sizes,
    "mostly zeros": mostly_zeros,
    "zeros": lambda draw, rows, width: np.zeros((rows, width)),
    "denormal": lambda draw, rows, width: 1e-39 * draw.standard_normal((rows, width)),
    "small whole numbers": lambda draw, rows, width: draw.randint(-1, 2, (rows, width)),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", HEADS)
def test_the_token_is_that_of_all_logits(name, precision):
    for seed, (rows, width, states) in enumerate([(1, 35, 1), (2, 3, 8), (31, 64, 1), (33, 35, 8), (1000, 64, 40),
                                                  (1000, 70, 12), (3001, 64, 8), (3001, 35, 1)]):
        draw = np.random.RandomState(seed)
        check(HEADS[name](draw, rows, width), draw.standard_normal((states, width)), precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("gain", [0, 1e-20, 1e-3, 300, 1e12, 1e20])
def test_states_of_any_size(gain, precision):
    draw = np.random.RandomState(0)
    states = draw.standard_normal((8, 64)) * 10 ** draw.uniform(-2, 2, 64)
    check(draw.standard_normal((1000, 64)), states, precision=precision, gain=gain)


def signs(draw, rows: int, width: int) -> np.ndarray:
    """Plus and minus one, as often one as the other in each column: bytes leave nothing of them out."""
    half = draw.choice([-1, 1], (rows // 2, width))
    return np.concatenate([half, -half])


def pointed(draw, rows: int, width: int, states: int):
    """One number of a state so large that 16 bits leave little of the others, which decide between half of the rows."""
    found = draw.standard_normal((states, width))
    found[:, 0] = 3e4
    return signs(draw, rows, width), found


def rounded(draw, rows: int, width: int, states: int):
    """Logits so large that their rounding errors decide."""
    return 1e6 + signs(draw, rows, width), draw.standard_normal((states, width))


def crossing(draw, rows: int, width: int, states: int):
    """States almost at right angles to what the rows have in common, which is most of them."""
    base, head = draw.standard_normal((1, width)), draw.standard_normal((rows, width))
    found = draw.standard_normal((states, width))
    return base + 10.0 ** draw.randint(-6, 0, (rows, 1)) * head, found - found @ base.T @ base / (base @ base.T)


def plain(draw, rows: int, width: int, states: int):
    return draw.standard_normal((rows, width)), draw.standard_normal((states, width))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("make", [plain, pointed, rounded, crossing])
def test_many_states_with_rivals_closer_than_bytes_resolve(make, precision):
    head, states = make(np.random.RandomState(0), 3000, 64, 600)
    found = network(head.astype(np.float32), precision)
    for some in np.split(states.astype(np.float32), 50):
        np.testing.assert_array_equal(ask(found.likeliest, some), ask(found.logits, some).argmax(1))


def test_only_rows_whose_bound_reaches_the_best_are_computed():
    draw = np.random.RandomState(0)
    head, states = draw.standard_normal((1000, 64)).astype(np.float32), draw.standard_normal((1, 64)).astype(np.float32)
    if packing.screen(Matrix.of(head)) is None:
        pytest.skip("needs a processor that multiplies bytes: on this one all logits are computed")
    best = int((states @ head.T).argmax())
    unseen = (best + 500) % 1000  # in the panels, not in the screen, the best row is this one
    changed = head.copy()
    changed[unseen] = 2 * head[best]
    contents = changed
    found = network(Matrix(lambda: contents))  # packs the panels; the first call of `likeliest` packs the screen
    contents = head
    assert ask(found.logits, states).argmax() == unseen
    assert ask(found.likeliest, states) == [best]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_heads_that_are_not_finite_are_found(value, precision):
    draw = np.random.RandomState(0)
    head, states = draw.standard_normal((1000, 64)).astype(np.float32), draw.standard_normal((3, 64)).astype(np.float32)
    head[700, 10:20] = np.abs(value) if value == 3e38 else value
    states[1, 10:20] = 10
    found = network(head, precision)
    for method in (found.logits, found.likeliest):
        with pytest.raises(UserError, match="not finite"):
            ask(method, states)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_not_finite_are_found(value):
    draw = np.random.RandomState(0)
    states = draw.standard_normal((8, 64)).astype(np.float32)
    states[5, 7] = value
    found = network(draw.standard_normal((100, 64)).astype(np.float32))
    for some in (states, states[5:6]):
        with pytest.raises(UserError, match="not finite"):
            ask(found.likeliest, some)
