from __future__ import annotations

import numpy as np
import pytest

from jittor_lora.ops import Matrix
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


@needs_bf16
def test_packed_weights_are_kept():
    matrix = Matrix.of(WEIGHT, "bf16")
    assert matrix.packed(True) is matrix.packed(True)
    assert matrix.packed(True) is not matrix.packed(False)
    assert matrix.packed_head(False) is matrix.packed_head(False)


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="fp32, bf16, found int8"):
        Matrix.of(WEIGHT, "int8")
