from __future__ import annotations

import numpy as np
import pytest

from jittor_lora.ops import Matrix, TrainedMatrix
from jittor_lora.ops.cpu import packing
from jittor_lora.system.runtime import jt
from needs import PRECISIONS, needs_bf16

WEIGHT = np.random.RandomState(0).standard_normal((7, 5)).astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_and_numbers_are_those_it_was_read_with(precision):
    matrix = Matrix.of(WEIGHT, precision)
    assert matrix.shape == (7, 5)
    np.testing.assert_array_equal(matrix.rows(np.array([6, 0, 0, 3], np.int32)).numpy(), WEIGHT[[6, 0, 0, 3]])
    np.testing.assert_array_equal(matrix.numpy(), WEIGHT)
    np.testing.assert_array_equal(matrix.var.numpy(), WEIGHT)
    assert matrix.var.is_stop_grad() and matrix.rows(np.array([1], np.int32)).is_stop_grad()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forms_are_packed_once(precision):
    matrix, packed = Matrix.of(WEIGHT.T.copy().T, precision), []

    def pack(array):
        assert array.flags.c_contiguous
        packed.append(array)
        return jt.array(array * 2)

    form = matrix.form("double", pack)
    assert form is matrix.form("double", pack) and form.is_stop_grad() and len(packed) == 1
    np.testing.assert_array_equal(form.numpy(), 2 * WEIGHT)
    assert matrix.form("none", lambda array: None) is None
    assert matrix.form("double, again", pack) is not form


def test_forms_of_a_trained_matrix_follow_it():
    matrix = TrainedMatrix(jt.array(WEIGHT))
    assert matrix.form("sum", np.sum) == WEIGHT.sum()
    matrix.var.update(jt.array(2 * WEIGHT))
    assert matrix.form("sum", np.sum) == (2 * WEIGHT).sum()


@needs_bf16
def test_the_layouts_of_a_product_are_kept():
    matrix = Matrix.of(WEIGHT, "bf16")
    assert packing.product(matrix, True) is packing.product(matrix, True)
    assert packing.product(matrix, True) is not packing.product(matrix, False)
    assert packing.head(matrix, False) is packing.head(matrix, False)


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="fp32, bf16, tf32, found int8"):
        Matrix.of(WEIGHT, "int8")
