"""Products and the loss with a matrix in ggml's formats: those of the same numbers in float32, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jittor_lora.ops import Matrix, fused, portable
from jittor_lora.ops.blocks import FLOAT32, STORED, Blocks
from jittor_lora.ops.cpu import packing
from jittor_lora.ops.cpu.interface import ENUMERATIONS
from jittor_lora.system.runtime import jt, set_threads, threads
from needs import PRECISIONS, needs_kernels

pytestmark = needs_kernels

SCALES = {"Q4_K": (0, 2), "Q6_K": (208,)}  # bytes of a block with scales, where the gguf library cannot quantise
SIXTEEN_BITS = ("BF16", "F16")


def normal(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def in_blocks(kind: str, out: int, width: int, seed: int = 1) -> Blocks:
    """A matrix of numbers of the order of 0.1."""
    known = gguf.GGMLQuantizationType[kind]
    numbers, size = gguf.GGML_QUANT_SIZES[known]
    if kind not in SCALES:
        data = gguf.quants.quantize(0.1 * normal(out, width, seed=seed), known)
        return Blocks(kind, (out, width), data.view(np.uint8).reshape(out, -1))
    draw = np.random.RandomState(seed)
    data = draw.randint(0, 256, (out, width // numbers, size), dtype=np.uint8)
    for at in SCALES[kind]:
        data[..., at : at + 2] = draw.uniform(1e-4, 1e-3, (*data.shape[:2], 1)).astype("<f2").view(np.uint8)
    return Blocks(kind, (out, width), data.reshape(out, -1))


def pair(kind, out, width, precision="fp32"):
    """The matrix in blocks, and in float32."""
    blocks = in_blocks(kind, out, width)
    return Matrix(lambda: blocks, precision), Matrix.of(blocks.decoded(), precision)


def linear(weight, rows):
    """A layer with an update and dropout, and its gradients."""
    out, width = weight.shape
    x, a, b = (jt.array(v) for v in (normal(rows, width), normal(3, width, seed=2), normal(out, 3, seed=3)))
    y = fused.lora_linear(x, weight, None, a, b, 2.0, 0.1, 7)
    return [y, *jt.grad((y * jt.array(normal(rows, out, seed=4))).sum(), [x, a, b])]


def loss(weight, rows):
    labels = np.random.RandomState(5).randint(0, weight.shape[0], rows).astype(np.int32)
    hidden = jt.array(normal(rows, weight.shape[1]))
    value = fused.token_cross_entropy(hidden, weight, jt.array(labels), jt.ones(rows), 0.1)
    return [value, jt.grad(value, hidden)]


def bits(results) -> list[bytes]:
    return [result.numpy().tobytes() for result in results]


def test_codes_are_those_of_the_kernels():
    assert ENUMERATIONS["Storage"] == ("FLOAT32", *STORED, "PACKED") and packing.storage(Matrix.of(normal(2, 2))) == 0


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(STORED), st.integers(1, 200), st.integers(1, 130), st.integers(1, 3))
@example("Q4_1", 128, 17, 3)
@example("Q4_K", 200, 100, 2)
@example("BF16", 131, 33, 1)
@example("F16", 3, 1, 1)
def test_linear(kind, rows, out, blocks):
    width = 64 * blocks
    width = width - 27 if kind in SIXTEEN_BITS else 256 * blocks if kind in SCALES else width
    one, other = pair(kind, out, width)
    assert (one.storage, other.storage) == (kind, FLOAT32)
    assert bits(linear(one, rows)) == bits(linear(other, rows))


@pytest.mark.parametrize("kind, rows, out, width", [("Q4_1", 600, 300, 544), ("Q6_K", 490, 97, 768),
                                                    ("BF16", 1000, 50, 301)])
def test_linear_on_many_rows_and_threads(kind, rows, out, width):
    one, other = pair(kind, out, width)
    expected, before = bits(linear(other, rows)), threads()
    try:
        for count in (1, 2, 5):
            set_threads(count)
            assert bits(linear(one, rows)) == expected
    finally:
        set_threads(before)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(STORED), st.integers(1, 80), st.integers(1, 2500))
@example("Q8_0", 300, 2500)
@example("Q4_1", 65, 1025)
def test_cross_entropy(kind, rows, size):
    one, other = pair(kind, size, 256)
    assert bits(loss(one, rows)) == bits(loss(other, rows))


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "fp32"])
def test_products_in_bf16_round_the_same_numbers(precision):
    for kind, rows in (("Q8_0", 40), ("Q4_K", 600), ("BF16", 130)):
        one, other = pair(kind, 1100, 256, precision)
        assert bits(linear(one, rows)) == bits(linear(other, rows))
        assert bits(loss(one, rows)) == bits(loss(other, rows))


def test_stock_jittor_computes_with_the_numbers():
    one, other = pair("Q4_0", 20, 64)
    x = jt.array(normal(5, 64))
    assert bits([portable.linear(x, one)]) == bits([portable.linear(x, other)])
