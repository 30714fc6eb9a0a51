"""Whole networks on the fused kernels against the same networks in stock Jittor."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import set_threads, threads
from jittor_lora.training.gradients import gradients_of
from needs import PRECISIONS, needs_bf16, needs_kernels

pytestmark = needs_kernels

WIDER = {
    "gpt2": {**tiny.GPT2, "n_embd": 96, "n_layer": 3, "n_head": 3, "n_positions": 128},
    "llama": {**tiny.LLAMA, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
              "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 160, "max_position_embeddings": 128},
}
WIDER.update({family: {**WIDER["llama"], "model_type": family, "head_dim": 32} for family in ("qwen2", "qwen3")})
GROUPS = [(30, [5, 9, 1]), (0, [17]), (25, [])]


def tensors(source):
    """Weights of the size they have in trained networks of this width."""
    return {name: array if array.ndim == 1 else array * 0.4 for name, array in tiny.tensors(source).items()}


def loss_and_gradients(source, precision="fp32", portable=False, recompute=False):
    """
    Args:
        portable: operations that run in stock Jittor; True for all.
    """
    model = build_model(tiny.config(source), tensors(source), precision)
    model.activation_checkpointing = recompute
    adapter = inject(model, LoraConfig(r=5, alpha=10, dropout=0.1, target_modules="all-linear"), seed=3)
    shapes = {name: tuple(p.shape) for name, p in adapter.parameters().items()}
    draw = np.random.RandomState(5)
    adapter.load({name: (draw.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in shapes.items()})
    adapter.set_dropout(1, 2, 3)
    layout = Layout.of_lengths(GROUPS)
    positions = np.concatenate([np.concatenate([np.arange(prefix), *(prefix + np.arange(n) for n in branches)])
                                for prefix, branches in GROUPS]).astype(np.int32)
    rows = np.array([29, 33, 34, 43, 44, 61, 86])
    with ops.portable_operations(*(() if portable is True else portable)) if portable else nullcontext():
        hidden = model.hidden(tiny.tokens(layout.rows), positions, layout, rows)
        weights = np.full(len(rows), 0.2, np.float32)
        loss = ops.token_cross_entropy(hidden, model.head(), tiny.tokens(len(rows), 9), weights)
        gradients = gradients_of(loss, list(adapter.parameters().values()))
        return loss.item(), np.concatenate([g.numpy().ravel() for g in gradients])


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", [*tiny.VARIANTS, *(f"wider {name}" for name in WIDER)])
def test_loss_and_gradients_in_fp32(name):
    source = WIDER[name[6:]] if name.startswith("wider") else {**tiny.VARIANTS[name], "n_positions": 128,
                                                                "max_position_embeddings": 128}
    (loss, gradients), (defined, expected) = (loss_and_gradients(source, portable=p) for p in (False, True))
    assert loss == pytest.approx(defined, rel=1e-5)
    assert distance(gradients, expected) < 1e-5


@needs_bf16
@pytest.mark.parametrize("name", WIDER)
def test_loss_and_gradients_in_bf16(name):
    loss, gradients = loss_and_gradients(WIDER[name], "bf16")
    defined, expected = loss_and_gradients(WIDER[name], portable=True)
    assert loss == pytest.approx(defined, rel=1e-2)
    assert 1e-5 < distance(gradients, expected) < 2e-2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_threads_change_no_bit(precision, recompute):
    before, found = threads(), []
    try:
        for count in (1, 2, 3):
            set_threads(count)
            loss, gradients = loss_and_gradients(WIDER["gpt2"], precision, recompute=recompute)
            found.append((loss, gradients.tobytes()))
    finally:
        set_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("family", WIDER)
def test_what_lies_between_the_layers_gives_the_same_bits(family):
    source = {**WIDER[family], **({"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4})}
    loss, gradients = loss_and_gradients(source)
    expected_loss, expected = loss_and_gradients(source, portable=["arrays"])
    assert loss == expected_loss
    assert gradients.tobytes() == expected.tobytes()
