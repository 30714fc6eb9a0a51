"""The emulator's matrix functions against plain products.

Where a lane's elements lie is written here a second time, as CUTLASS has it (`MMA_Traits` of
`SM80_16x8x16_F32BF16BF16F32_TN`): element number v of lane l has the offset that the digits of l and v, base 4·8 and
2·2·2, have in a matrix by columns.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from cuda_emulator.library import library

LANES, ELEMENTS = np.arange(32)[:, None], np.arange(8)[None]


def offsets(lane_strides, element_strides) -> np.ndarray:
    """(32, elements): the offset of each lane's elements."""
    found = LANES % 4 * lane_strides[0] + LANES // 4 * lane_strides[1]
    count = 2 ** len(element_strides)
    return found + sum(ELEMENTS[:, :count] // 2**i % 2 * stride for i, stride in enumerate(element_strides))


LEFT = offsets((32, 1), (16, 8, 128))  # (16, 16)
RIGHT = offsets((16, 1), (8, 64))  # its transpose, (8, 16)
SUMS = offsets((32, 1), (16, 8))  # (16, 8)


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def bf16(array) -> np.ndarray:
    """The upper halves of float32 numbers that have zeros in the lower ones."""
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def integers(*shape, seed):
    return np.random.RandomState(seed).randint(-8, 8, shape).astype(np.float32)  # sums of products are exact


def test_lanes_hold_all_elements_once():
    for held, count in ((LEFT, 256), (RIGHT, 128), (SUMS, 128)):
        assert sorted(held.ravel()) == list(range(count))


def test_a_product_of_fragments():
    a, b, c = integers(16, 16, seed=0), integers(8, 16, seed=1), integers(16, 8, seed=2)
    left, right = (bf16(np.ascontiguousarray(m.ravel("F")[held])) for m, held in ((a, LEFT), (b, RIGHT)))
    sums = np.ascontiguousarray(c.ravel("F")[SUMS])
    library().jl_emulator_mma(pointer(left), pointer(right), pointer(sums))
    found = np.empty(128, np.float32)
    found[SUMS] = sums
    assert (found.reshape(16, 8, order="F") == a @ b.T + c).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_of_matrices(transposed):
    memory = np.arange(40 * 8, dtype=np.uint16)
    rows = np.random.RandomState(0).permutation(40)[:32].astype(np.int32) * 8
    found = np.empty((32, 4, 2), np.uint16)
    library().jl_emulator_ldmatrix(pointer(memory), memory.nbytes, pointer(rows), transposed, pointer(found))
    for lane in range(32):
        for number in range(4):
            matrix = np.array([memory[row : row + 8] for row in rows[8 * number : 8 * number + 8]])
            if transposed:
                matrix = matrix.T
            assert found[lane, number].tolist() == matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_from_shared_memory(transposed):
    x, y, found = integers(16, 16, seed=0), integers(16, 16, seed=1), np.empty((16, 16), np.float32)
    library().jl_emulator_product(pointer(x), pointer(y), transposed, pointer(found))
    assert (found == x @ (y.T if transposed else y)).all()
