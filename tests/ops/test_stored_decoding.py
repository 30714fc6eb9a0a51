"""Decoding with matrices in ggml's formats: the logits of the same numbers in float32, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

import tiny
from jittor_lora.inference.fused_reader import FusedReader
from jittor_lora.inference.reader import Turn
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.ops.blocks import STORED, Blocks
from jittor_lora.system import runtime
from needs import PRECISIONS, needs_kernels

pytestmark = needs_kernels

# Widths are whole blocks of 256 numbers; the vocabulary, and keys of one head, leave a panel without a neighbour.
LLAMA = {**tiny.LLAMA, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
         "intermediate_size": 512, "vocab_size": 75}
GPT2 = {**tiny.GPT2, "n_embd": 256, "n_head": 4, "n_inner": 512, "vocab_size": 75}


class Tensors(dict):
    """A checkpoint's tensors, of which it has matrices in blocks too."""

    def __init__(self, tensors: dict[str, np.ndarray], blocks: dict[str, Blocks]):
        super().__init__(tensors)
        self._blocks = blocks

    def stored(self, name: str) -> Blocks | None:
        return self._blocks.get(name)


def quantised(kind: str, matrix: np.ndarray) -> Blocks:
    known = gguf.GGMLQuantizationType[kind]
    numbers, size = gguf.GGML_QUANT_SIZES[known]
    if kind not in ("Q4_K", "Q6_K"):
        data = gguf.quants.quantize(matrix, known).view(np.uint8).reshape(len(matrix), -1)
        return Blocks(kind, matrix.shape, data)
    draw = np.random.RandomState(len(matrix))
    data = draw.randint(0, 256, (len(matrix), matrix.shape[1] // numbers, size), dtype=np.uint8)
    for at in (0, 2) if kind == "Q4_K" else (208,):
        scales = draw.uniform(1e-4, 3e-4, (*data.shape[:2], 1)).astype("<f2")
        data[..., at : at + 2] = scales.view(np.uint8)
    return Blocks(kind, matrix.shape, data.reshape(len(matrix), -1))


def readers(source: dict, kinds: tuple[str, ...], precision: str = "fp32", adapted: bool = False) -> list[FusedReader]:
    """Of a network whose matrices have these formats in turn, and of the same network in float32."""
    tensors, blocks, turned = tiny.tensors(source), {}, ("c_attn", "c_proj", "c_fc")
    for name, array in tensors.items():
        if array.ndim == 2 and "wpe" not in name:
            transposed = any(part in name for part in turned)
            blocks[name] = quantised(kinds[len(blocks) % len(kinds)], array.T.copy() if transposed else array)
            decoded = blocks[name].decoded()
            tensors[name] = decoded.T.copy() if transposed else decoded
    made = []
    for given in (Tensors(tensors, blocks), tensors):
        model = build_model(tiny.config(source), given, precision)
        if adapted:
            adapter = inject(model, LoraConfig(r=5, alpha=8.0, target_modules="all-linear"))
            adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
        made.append(FusedReader(model))
    return made


def ids(count: int, seed: int = 0) -> list[int]:
    return tiny.tokens(count, seed).tolist()


def answers(reader: FusedReader, rows: int) -> list[np.ndarray]:
    """To one text of `rows` tokens and another one, and to as many texts of a token over a prefix."""
    found = []
    for ask in (reader.logits, reader.likeliest):
        text = reader.open(0, [rows + 1])
        found += [ask([Turn(text, (), [(0, ids(rows))])]), ask([Turn(text, (), [(0, ids(1, 1))])])]
        texts = reader.open(3, [1] * rows)
        found.append(ask([Turn(texts, ids(3), [(b, ids(1, b)) for b in range(rows)])]))
    return found


def check(source: dict, kinds: tuple[str, ...], rows: tuple[int, ...], **more) -> None:
    stored, decoded = readers(source, kinds, **more)
    for count in rows:
        for found, expected in zip(answers(stored, count), answers(decoded, count)):
            assert np.isfinite(expected).all()
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", STORED)
def test_any_number_of_rows(kind, precision):
    """As many as are multiplied together, with one panel and with two; more, in equal blocks and with a rest."""
    check(LLAMA, (kind,), (1, 2, 3, 4, 5, 6, 7, 8, 13, 30, 40), precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("source", [LLAMA, GPT2])
def test_a_format_per_matrix(source, precision):
    """With an adapter, fused and single projections, and gated or not."""
    check(source, STORED, (1, 5, 9), precision=precision, adapted=True)


def test_any_number_of_threads():
    before, found = runtime.threads(), []
    try:
        for threads in (1, 2, 3):
            runtime.set_threads(threads)
            reader, _ = readers(LLAMA, ("Q4_1", "Q8_0"))
            found.append([answer for rows in (1, 7, 20) for answer in answers(reader, rows)])
    finally:
        runtime.set_threads(before)
    for some in found[1:]:
        for ours, theirs in zip(some, found[0]):
            np.testing.assert_array_equal(ours, theirs)
