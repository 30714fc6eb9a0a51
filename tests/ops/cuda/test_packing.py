"""Weights on the device: each once, and in so few bytes that GPT-2 XL is trained on a GPU with 8 GB."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.config import tensor_shapes
from jittor_lora.model.load import build_model
from jittor_lora.ops import Matrix
from jittor_lora.ops.blocks import Blocks
from jittor_lora.ops.cuda import packing
from jittor_lora.settings.run import RunConfig
from jittor_lora.training.batches import streams_of
from jittor_lora.training.gradients import batch_gradients
from kernel_comparison import normal

pytestmark = pytest.mark.usefixtures("on_the_emulator")
XL = {**tiny.GPT2, "vocab_size": 50257, "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024}
GIB = 1 << 30


def as_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)


def test_rounding():
    """To nearest, ties to even; NaN and infinities stay."""
    x = np.array([[1.0, 1.00390625, 1.01171875, -2.7182817, np.inf, -np.inf, 3.4e38, 1e-40]], np.float32)
    found = as_float(packing.product(Matrix.of(x, "bf16"), True).numpy())[0]
    assert found[:3].tolist() == [1.0, 1.0, 1.015625] and found[6] == np.inf
    np.testing.assert_allclose(found[3], x[0, 3], rtol=2**-9)
    assert np.isnan(as_float(packing.product(Matrix.of(x * np.nan, "bf16"), True).numpy()))[0].all()
    assert found[4:6].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("rows", [64, 70])
def test_a_matrix_of_bf16_stays_as_it_is_stored(rows):
    bits = np.random.RandomState(0).randint(0, 1 << 15, (rows, 8)).astype(np.uint16)
    matrix = Matrix(lambda: Blocks("BF16", (rows, 8), bits.view(np.uint8)), "bf16")
    packed = packing.product(matrix, True).numpy()
    np.testing.assert_array_equal(packed[:rows].view(np.uint16), bits)
    assert packed.shape == (rows + -rows % packing.BF16_ROWS, 8) and not packed[rows:].any()


def test_a_transposed_matrix_is_packed_part_by_part(monkeypatch):
    array = normal(1500, 1100)
    sizes = []
    rounded = packing._rounded
    monkeypatch.setattr(packing, "_rounded", lambda part: sizes.append(part.size) or rounded(part))
    found = as_float(packing.product(Matrix.of(array.T, "bf16"), True).numpy())[:1100]
    np.testing.assert_allclose(found, array.T, rtol=2**-8)
    assert len(sizes) > 1 and max(sizes) <= 1 << 20


# Widths that need no padding.
ROUND = {"gpt2": {**tiny.GPT2, "vocab_size": 128, "n_embd": 64, "n_head": 2},
         "llama": {**tiny.LLAMA, "vocab_size": 128, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32,
                   "intermediate_size": 128}}
ROUND["llama-untied"] = {**ROUND["llama"], "tie_word_embeddings": False}


class InBf16(dict):
    """Tensors of a file in bf16."""

    def stored(self, name: str) -> Blocks:
        halves = (self[name].view(np.uint32) >> 16).astype(np.uint16)
        return Blocks("BF16", self[name].shape, halves.view(np.uint8))


def forms_after_a_step(source: dict, tensors, monkeypatch) -> list:
    """All that the matrices of a network hold on the device, in bf16."""
    made, create = [], Matrix.__init__

    def noted(self, *arguments):
        create(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Matrix, "__init__", noted)
    model = build_model(tiny.config(source), tensors, "bf16")
    adapter = inject(model, LoraConfig(r=2, alpha=4.0, target_modules=DEFAULT_TARGETS[source["model_type"]]))
    batch_gradients(model, streams_of(tiny.groups(4), RunConfig(batch_size=4)), adapter.parameters())
    return [form for matrix in made for form in (*matrix._forms.values(), matrix._var) if form is not None]


def numbers_in(forms, dtype: str) -> int:
    return sum(form.numel() for form in forms if str(form.dtype) == dtype)


@pytest.mark.parametrize("family, looked_up", [("gpt2", ["wte", "wpe"]), ("llama", ["embed_tokens"]),
                                               ("llama-untied", ["embed_tokens"])])
def test_a_base_in_float32_is_held_once_in_bf16(family, looked_up, monkeypatch):
    """What products read, that is: rows of embeddings are looked up unrounded."""
    tensors = tiny.tensors(ROUND[family])
    forms = forms_after_a_step(ROUND[family], tensors, monkeypatch)
    tables = {name: t.size for name, t in tensors.items() if name.split(".")[-2] in looked_up}
    heads = [name for name in tables if "wte" in name or family == "llama"]  # tied
    products = sum(t.size for name, t in tensors.items() if t.ndim == 2 and (name not in tables or name in heads))
    assert numbers_in(forms, "int16") == products
    assert numbers_in(forms, "float32") == sum(tables.values())


@pytest.mark.parametrize("family", ["llama", "llama-untied"])
def test_a_base_in_bf16_is_held_once(family, monkeypatch):
    """The tied embedding, too."""
    tensors = InBf16(tiny.tensors(ROUND[family]))
    forms = forms_after_a_step(ROUND[family], tensors, monkeypatch)
    assert numbers_in(forms, "int16") == sum(t.size for t in tensors.values() if t.ndim == 2)
    assert numbers_in(forms, "float32") == 0


def test_gpt2_xl_is_trained_in_8_gb():
    """With r = 8 on every linear layer and activation checkpointing, in streams of 1,024 tokens, as by default."""
    config, tokens, rank = tiny.config(XL), RunConfig().max_tokens_per_stream, 8
    shapes = tensor_shapes(config)
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and not name.endswith("wpe.weight")}
    weights = sum(2 * (rows + -rows % packing.BF16_ROWS) * width for rows, width in matrices.values())
    weights += sum(4 * shape[0] for shape in shapes.values() if len(shape) == 1)
    weights += 4 * 1600 * (50257 + 1024)  # embeddings of a file in float32
    adapted = [shape for name, shape in matrices.items() if ".c_" in name]
    assert len(adapted) == 4 * 48 and 1.55e9 < sum(rows * width for rows, width in matrices.values()) < 1.56e9
    # Parameters, gradients and two moments, and those three again when they are updated.
    trained = 7 * 4 * sum(rank * (rows + width) for rows, width in adapted)
    inputs = 48 * 4 * 1600 * tokens  # of the blocks
    # Of the block that is computed again: norms 2, qkv 3, attention 1, residual 1, inner 8; and their gradients.
    block = 2 * 15 * 4 * 1600 * tokens
    rounded = 2 * 4 * 1600 * tokens
    logits = 256 * 50304 * (4 + 2)  # PANEL_ROWS of cross_entropy.cu, in float32 and bf16
    context = GIB  # of CUDA, cuBLAS with its 32 MiB, and what Jittor's pools leave unused
    total = weights + trained + inputs + block + rounded + logits + context
    assert 3.2 * GIB < weights < 3.3 * GIB
    assert total < 5.5 * GIB
