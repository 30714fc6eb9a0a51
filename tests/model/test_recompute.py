"""Activation checkpointing changes no loss and no gradient, and keeps less."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import tiny
from jittor_lora.data.stream import build_stream
from jittor_lora.lora.config import ALL_LINEAR, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt
from jittor_lora.training.gradients import gradients_of, mean_loss, stream_loss


def adapted(variant, targets=ALL_LINEAR, **changes):
    source = {**tiny.VARIANTS[variant], **changes}
    model = build_model(tiny.config(source), tiny.tensors(source))
    adapter = inject(model, LoraConfig(4, 8.0, 0.3, targets, "gaussian", False))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return model, adapter


def loss_and_gradients(model, adapter, stream):
    parameters = adapter.parameters()
    adapter.set_dropout(1, 2, 3)
    loss = stream_loss(model, stream)
    gradients = gradients_of(loss, list(parameters.values()))
    adapter.set_dropout()
    return loss.item(), {name: g.numpy() for name, g in zip(parameters, gradients)}


@pytest.mark.parametrize("variant, targets", [
    ("gpt2", ALL_LINEAR), ("llama", ALL_LINEAR),
    ("gpt2", r"transformer\.h\.1\.mlp\.c_fc"),  # nothing to learn in the first block
    ("gpt2", r"transformer\.h\.0\.attn\.c_attn"),  # nor in the last
    ("llama", r"model\.layers\.[01]\.mlp\.up_proj"),
])
def test_loss_and_gradients_stay(variant, targets):
    model, adapter = adapted(variant, targets)
    stream = build_stream(tiny.groups(5), 0.5)
    loss, gradients = loss_and_gradients(model, adapter, stream)
    model.activation_checkpointing = True
    for _ in range(2):
        again, recomputed = loss_and_gradients(model, adapter, stream)
        assert again == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            assert np.abs(gradient).max() > 1e-4
            np.testing.assert_allclose(recomputed[name], gradient, atol=1e-5 * max(1, np.abs(gradient).max()),
                                       err_msg=name)
    assert mean_loss(model, [stream]) == pytest.approx(mean_loss(adapted(variant, targets)[0], [stream]), rel=1e-5)


def kept(model, stream):
    """Jittor's variables alive between the forward and the backward pass."""
    gc.collect()  # what earlier tests have left, which may else go in between
    jt.sync_all()
    before = jt.liveness_info()["lived_vars"]
    loss = stream_loss(model, stream)
    loss.sync()
    return jt.liveness_info()["lived_vars"] - before


@pytest.mark.parametrize("variant", ["gpt2", "llama", "qwen3"])
def test_less_is_kept(variant):
    model, _ = adapted(variant)
    stream = build_stream(tiny.groups(5))
    whole = kept(model, stream)
    model.activation_checkpointing = True
    assert kept(model, stream) < whole / 2
