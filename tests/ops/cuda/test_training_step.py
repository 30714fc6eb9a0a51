"""Whole steps of training on the CUDA backend's kernels, on the emulator, against the same in stock Jittor."""

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

STEPS = 2
FAMILIES = ("gpt2", "llama", "qwen3")


@pytest.fixture(autouse=True, scope="module")
def on_the_emulator():
    with emulated():
        yield


def trained(family, defined=False, precision="fp32"):
    """The losses of two steps with clipping, and the changes of all parameters and moments as one vector.

    Args:
        defined: in stock Jittor.
    """
    source = tiny.VARIANTS[family]
    with ops.portable_operations() if defined else nullcontext():
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
    assert launches() > before
    expected_losses, expected = trained(family, defined=True)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert distance(arrays, expected) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_steps_in_bf16(family):
    losses, arrays = trained(family, precision="bf16")
    expected_losses, expected = trained(family, defined=True)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-2)
    assert 1e-5 < distance(arrays, expected) < 0.1  # AdamW's steps are as large for small gradients


def test_two_steps_in_another_order_of_threads():
    losses, arrays = trained("llama")
    with thread_order(DESCENDING):
        same_losses, same = trained("llama")
    assert losses.tolist() == same_losses.tolist()
    assert arrays.tobytes() == same.tobytes()
