"""How many kernels and products a training step starts: each costs some microseconds, however little it computes."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from cuda_emulator import launches
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.training.batches import streams_of
from jittor_lora.training.gradients import batch_gradients
from jittor_lora.training.optimizer import AdamW, clip_scale, gradient_norm

GPT2_LAYERS = 12
BOUND = 500  # for a step of GPT-2 124M

pytestmark = pytest.mark.usefixtures("on_the_emulator")

def step_launches(layers: int, precision: str) -> int:
    """Of a step with clipping, every linear layer adapted, as by default."""
    source = {**tiny.GPT2, "n_layer": layers}
    model = build_model(tiny.config(source), tiny.tensors(source), precision)
    adapter = inject(model, LoraConfig(r=8, alpha=16.0, dropout=0.1, target_modules=DEFAULT_TARGETS["gpt2"]))
    parameters = adapter.parameters()
    optimizer = AdamW(parameters, weight_decay=0.1)
    adapter.set_dropout(1, 0)
    streams = streams_of(tiny.groups(4), RunConfig(batch_size=4))
    assert len(streams) == 1
    jt.sync_all()
    before = launches()
    _, gradients = batch_gradients(model, streams, parameters)
    optimizer.step(gradients, 0.01, clip_scale(gradient_norm(gradients), 1.0))
    optimizer.state()
    assert all(np.isfinite(p.numpy()).all() for p in parameters.values())
    return launches() - before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_gpt2(precision):
    counts = [step_launches(layers, precision) for layers in (2, 3, 4)]
    per_layer = counts[2] - counts[1]
    assert counts[1] - counts[0] == per_layer
    assert counts[0] + (GPT2_LAYERS - 2) * per_layer < BOUND
