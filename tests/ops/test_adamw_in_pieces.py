"""A step of AdamW in several calls of its kernel, as where the parameters are large, is that of one call."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from cuda_emulator import emulated
from jittor_lora.ops import fused
from jittor_lora.system.runtime import jt
from kernel_comparison import normal
from needs import needs_kernels

SHAPES = [(4, 5), (30, 3), (1, 1), (2, 3), (40, 7), (8, 8)]  # 20, 90, 1, 6, 280 and 64 numbers


def step(monkeypatch, at_a_time):
    """The arrays after a step, and the numbers of parameters in each call."""
    calls, call = [], fused.call

    def counted(kernel, shapes, *rest):
        calls.append(sum(int(np.prod(shape)) for shape in shapes) // 3)
        return call(kernel, shapes, *rest)

    monkeypatch.setattr(fused, "UPDATED_AT_A_TIME", at_a_time)
    monkeypatch.setattr(fused, "call", counted)
    parameters, gradients, firsts, seconds = ([normal(*shape, seed=4 * i + j) for i, shape in enumerate(SHAPES)]
                                              for j in range(4))
    arrays = [[jt.array(array) for array in kind]
              for kind in (parameters, gradients, firsts, [array**2 for array in seconds])]
    rates = [0.01 * (i + 1) for i in range(len(SHAPES))]
    after = fused.adamw(*arrays, (0.9, 0.999), [1.0 - 0.1 * rate for rate in rates], rates, 0.7, 1e-8, 0.5)
    monkeypatch.undo()
    assert [len(kind) for kind in after] == [len(SHAPES)] * 3
    return [array.numpy() for kind in after for array in kind], calls


@pytest.mark.parametrize("device", [pytest.param(nullcontext, marks=needs_kernels, id="cpu"),
                                    pytest.param(emulated, id="emulated")])
def test_several_calls_give_the_bits_of_one(device, monkeypatch):
    with device():
        whole, calls = step(monkeypatch, 10_000)
        assert calls == [461]
        for at_a_time, expected in ((100, [20, 97, 280, 64]), (117, [117, 280, 64]), (1, [20, 90, 1, 6, 280, 64])):
            parts, calls = step(monkeypatch, at_a_time)
            assert calls == expected
            assert all((part == one).all() for part, one in zip(parts, whole))
