"""What products are computed in, by device. There is no GPU here: its flags are set on a stand-in for Jittor."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.errors import UserError
from jittor_lora.model.load import build_model
from jittor_lora.ops import Matrix, matrix, precision
from jittor_lora.system.runtime import jt
from needs import HAS_BF16


class Gpu:
    """Jittor with a GPU of this architecture; nothing runs on it."""

    def __init__(self, arch: int):
        self.flags = SimpleNamespace(use_cuda=1, cuda_archs=[arch], use_tensorcore=0)

    @contextmanager
    def flag_scope(self, **flags):
        before = vars(self.flags).copy()
        vars(self.flags).update(flags)
        yield
        vars(self.flags).update(before)

    def __getattr__(self, name):
        return getattr(jt, name)


def test_what_a_gpu_multiplies(monkeypatch):
    for arch, works in ((75, False), (80, True), (86, True), (90, True)):
        monkeypatch.setattr(precision, "jt", Gpu(arch))
        assert precision.tf32_works() == works
        assert precision.bf16_works() == (works or HAS_BF16)  # else the backend's answer, here the CPU's


def test_products_of_a_gpu_are_in_the_precision_asked_for(monkeypatch):
    gpu = Gpu(86)
    monkeypatch.setattr(precision, "jt", gpu)
    for name, flag in (("fp32", 0), ("tf32", 1), ("bf16", 2)):
        with ops.stock_products(name):
            assert gpu.flags.use_tensorcore == flag
        assert gpu.flags.use_tensorcore == 0


def test_on_the_cpu_no_flag_changes():
    with ops.stock_products("bf16"):
        assert jt.flags.use_tensorcore == 0


def test_tf32_is_refused_on_the_cpu():
    source = tiny.VARIANTS["gpt2"]
    message = "expected bf16 or fp32 here, found tf32, which only NVIDIA's GPUs"
    with jt.flag_scope(use_cuda=0), pytest.raises(UserError, match=message):
        build_model(tiny.config(source), tiny.tensors(source), "tf32")


def test_a_gpu_holds_a_matrix_once_it_was_used(monkeypatch):
    x = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)
    held = Matrix.of(x, "bf16")
    assert held.var is not held.var
    monkeypatch.setattr(matrix, "jt", Gpu(86))
    first = held.var
    assert held.var is first
    np.testing.assert_array_equal(held.var.numpy(), x)
    np.testing.assert_array_equal(held.rows(np.array([2, 0], np.int32)).numpy(), x[[2, 0]])
