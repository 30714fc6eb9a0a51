"""Rows of an embedding on the CUDA backend are those of its file, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_emulator import launches
from jittor_lora import ops
from jittor_lora.ops import Matrix, TrainedMatrix
from jittor_lora.ops.blocks import Blocks
from jittor_lora.system.runtime import jt
from kernel_comparison import normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")

def stored(kind, rows, width):
    """A matrix in 16-bit floats, as in a file, and its numbers."""
    array = normal(rows, width)
    if kind == "BF16":
        halves = (array.view(np.uint32) >> 16).astype(np.uint16)
        array = (halves.astype(np.uint32) << 16).view(np.float32)
    else:
        halves = array.astype(np.float16)
        array = halves.astype(np.float32)
    return Blocks(kind, array.shape, halves.view(np.uint8)), array


@pytest.mark.parametrize("width", [7, 8, 1032])
@pytest.mark.parametrize("kind, precision, started", [
    ("F32", "fp32", 1), ("F32", "bf16", 1), ("BF16", "bf16", 1), ("BF16", "fp32", 0), ("F16", "bf16", 0)])
def test_rows_are_exact(kind, precision, started, width):
    contents, array = (normal(61, width),) * 2 if kind == "F32" else stored(kind, 61, width)
    weight, ids = Matrix(lambda: contents, precision), np.array([60, 0, 3, 3], np.int32)
    before = launches()
    found = ops.embedding(weight, ids)
    assert found.is_stop_grad()
    assert (found.numpy() == array[ids]).all()
    assert launches() - before == started


def test_one_row():
    assert (ops.embedding(Matrix.of(normal(5, 4)), np.array([2])).numpy() == normal(5, 4)[[2]]).all()


def test_a_tied_head_in_bf16_is_kept_once():
    contents, _ = stored("BF16", 61, 8)
    weight = Matrix(lambda: contents, "bf16")
    hidden = ops.embedding(weight, np.arange(5, dtype=np.int32))
    ops.token_cross_entropy(hidden, weight, np.arange(5, dtype=np.int32), np.ones(5, np.float32)).sync()
    assert len(weight._forms) == 1


def test_a_trained_table_gets_its_gradient():
    table = TrainedMatrix(jt.array(normal(5, 4)))
    gradient = jt.grad(ops.embedding(table, np.array([1, 1, 4], np.int32)).sum(), table.var).numpy()
    assert gradient[:, 0].tolist() == [0, 2, 0, 0, 1]
