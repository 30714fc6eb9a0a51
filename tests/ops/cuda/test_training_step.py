"""Whole steps of training on the CUDA backend's kernels, on the emulator, against the same in stock Jittor, and in bf16
against the CPU's kernels, which round the same numbers."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

import tiny
from cuda_emulator import DESCENDING, emulated, launches, thread_order
from jittor_lora import ops
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.settings.run import RunConfig
from jittor_lora.training.batches import streams_of
from jittor_lora.training.gradients import batch_gradients
from jittor_lora.training.optimizer import AdamW, clip_scale, gradient_norm
from needs import needs_bf16

STEPS = 2
FAMILIES = ("gpt2", "llama", "qwen3")


def trained(family, device=emulated, precision="fp32"):
    """The losses of two steps with clipping, and the changes of all parameters and moments as one vector."""
    source = tiny.VARIANTS[family]
    with device():
        tensors = {name: array if array.ndim == 1 else array * 0.4 for name, array in tiny.tensors(source).items()}
        model = build_model(tiny.config(source), tensors, precision)
        targets = DEFAULT_TARGETS[source["model_type"]]
        adapter = inject(model, LoraConfig(r=2, alpha=8.0, dropout=0.1, target_modules=targets))
        parameters = adapter.parameters()
        start = tiny.adapter_arrays({name: tuple(p.shape) for name, p in parameters.items()})
        adapter.load(start)
        optimizer = AdamW(parameters, weight_decay=0.1)
        losses = []
        for step in range(STEPS):
            adapter.set_dropout(1, step)
            streams = streams_of(tiny.several(4, step), RunConfig(batch_size=4, max_tokens_per_stream=40))
            loss, gradients = batch_gradients(model, streams, parameters, smoothing=0.1)
            norm = gradient_norm(gradients)
            optimizer.step(gradients, 0.01, clip_scale(norm, 1.0))
            losses += [loss, norm]
    changes = [parameters[name].numpy() - start[name] for name in parameters]
    return np.array(losses), np.concatenate([x.ravel() for x in (*changes, *optimizer.state().values())])


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps(family):
    before = launches()
    losses, arrays = trained(family)
    assert launches() > before + 100
    expected_losses, expected = trained(family, ops.portable_operations)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert distance(arrays, expected) < 1e-4


@needs_bf16
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_steps_in_bf16(family):
    """Without attention, which the devices round at different places."""
    with ops.portable_operations("attention"):
        losses, arrays = trained(family, precision="bf16")
        expected_losses, expected = trained(family, nullcontext, "bf16")
    np.testing.assert_allclose(losses, expected_losses, rtol=5e-3)
    assert distance(arrays, expected) < 5e-3


def test_two_steps_in_another_order_of_threads():
    losses, arrays = trained("llama")
    with thread_order(DESCENDING):
        same_losses, same = trained("llama")
    assert losses.tolist() == same_losses.tolist()
    assert arrays.tobytes() == same.tobytes()
