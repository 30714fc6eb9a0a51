"""Matrices in ggml's formats, as the kernels keep and decode them: the gguf library's numbers, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from jittor_lora.ops.blocks import STORED, Blocks
from jittor_lora.ops.cpu.interface import ENUMERATIONS
from jittor_lora.ops.cpu.library import library
from needs import needs_kernels

pytestmark = needs_kernels

# Bytes of a block where its scales lie, as halves.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}
# 0, -0, the smallest numbers and the largest of those below the normal ones, the smallest normal one, 1, the largest,
# infinities, and no numbers.
EXTREMES = np.array([0, 0x8000, 1, 0x8001, 0x3FF, 0x83FF, 0x400, 0x3C00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00], "<u2")


def random_blocks(kind: str, out: int, width: int, seed: int = 0) -> Blocks:
    """Random bits; some scales are extreme."""
    draw = np.random.RandomState(seed)
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = draw.randint(0, 256, (out, width // numbers, size), dtype=np.uint8)
    for at in SCALES.get(kind, []):
        scales = draw.standard_normal(blocks.shape[:2]).astype("<f2").view("<u2")
        extreme = draw.random_sample(scales.shape) < 0.3
        scales[extreme] = draw.choice(EXTREMES, extreme.sum())
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return Blocks(kind, (out, width), blocks.reshape(out, -1))


def stored(blocks: Blocks) -> tuple:
    """What the kernels take: its panels and their address, the format, out and in."""
    kind = ENUMERATIONS["Storage"].index(blocks.kind)
    panels = np.full(library().jl_stored_size(kind, *blocks.shape), 0xEE, np.uint8)
    data = np.ascontiguousarray(blocks.data)
    library().jl_store(kind, data.ctypes.data, *blocks.shape, panels.ctypes.data)
    return panels, (panels.ctypes.data, kind, *blocks.shape)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, whatever those of a NaN."""
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~numbers)
    np.testing.assert_array_equal(found[numbers].view(np.int32), expected[numbers].view(np.int32))


@pytest.mark.parametrize("kind", STORED)
def test_decoded_as_gguf_defines_it(kind):
    panel, some = library().jl_decode_panel(), 0
    for out, width in [(1, 256), (2 * panel + 3, 512), (panel, 768), (37, 40 if kind in ("BF16", "F16") else 1024)]:
        blocks = random_blocks(kind, out, width, out)
        with np.errstate(invalid="ignore"):
            expected = blocks.decoded()
        some += (np.abs(expected) < 1e-5).sum()
        kept, matrix = stored(blocks)
        for r0, r1, c0, c1 in [(0, out, 0, width), (out // 2, out, 8, width - 3), (out - 1, out, 16, 17),
                               (0, 1, 24, 24)]:
            found = np.full((r1 - r0, c1 - c0 + 5), 7, np.float32)
            library().jl_stored_rows(*matrix, r0, r1, c0, c1, found.ctypes.data, found.shape[1])
            check(found[:, : c1 - c0], expected[r0:r1, c0:c1])
            assert (found[:, c1 - c0 :] == 7).all()
        padded = np.pad(expected, [(0, -out % panel), (0, 0)])
        for number in range(len(padded) // panel):
            for k0, k1 in [(0, width), (8, width - 1), (16, 19)]:
                found = np.full((k1 - k0 + 1, panel), 7, np.float32)
                library().jl_stored_panel(*matrix, number, k0, k1, found.ctypes.data)
                check(found[:-1], padded[number * panel :][:panel, k0:k1].T)
                assert (found[-1] == 7).all()
    assert some


def test_sizes():
    """Panels take the file's bytes, but for 6 bits, which become 8, and Q4_K's scales, of 6 bits too."""
    for kind in STORED:
        blocks = random_blocks(kind, 64, 512)
        more = {"Q6_K": 274 / 210, "Q4_K": 148 / 144}.get(kind, 1)
        assert len(stored(blocks)[0]) == pytest.approx(blocks.data.size * more)
