"""Training against transformers, PEFT and torch's AdamW, step for step.

Ours reads streams with shared prefixes, theirs padded batches of separate examples.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

import tiny
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.training.batches import steps_from, streams_of
from jittor_lora.training.gradients import stream_loss
from jittor_lora.training.log import RunLog
from jittor_lora.training.loop import train
from jittor_lora.training.optimizer import AdamW
from jittor_lora.training.progress import Progress
from parity import reference

pytestmark = pytest.mark.parity

STEPS = 50
SOURCES = {
    "gpt2": {**tiny.GPT2, "vocab_size": 200, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "llama": {**tiny.LLAMA, "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 3, "head_dim": 16,
              "intermediate_size": 96, "max_position_embeddings": 128},
}
SOURCES.update({name: {**tiny.VARIANTS[name], **{key: SOURCES["llama"][key] for key in (
    "vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "intermediate_size", "max_position_embeddings")}}
    for name in ("llama3", "llama-biased", "mistral", "qwen2", "qwen3")})
SOURCES.update({name: {**tiny.VARIANTS[name], "vocab_size": 200, "n_positions": 128}
                for name in ("gpt2-scores-by-layer", "gpt2-scores-unscaled")})


def pair(family, config, values=None):
    """Ours and theirs with the same adapter: our start of it, or `values(shapes)`."""
    source = SOURCES[family]
    tensors = {name: array * np.float32(0.5 if array.ndim == 2 else 1) for name, array in tiny.tensors(source).items()}
    lora = reference.default_lora(source["model_type"], r=config.lora_r, alpha=config.lora_alpha)
    ours = build_model(tiny.config(source), tensors)
    adapter = inject(ours, lora, seed=config.seed)
    if values is not None:
        adapter.load(values({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    start = {name: p.numpy().copy() for name, p in adapter.parameters().items()}
    return ours, adapter, reference.adapted(reference.network(source, tensors), lora, start)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("family, weight", [("gpt2", 0.0), ("gpt2", 0.3), ("llama", 0.0), ("qwen2", 0.0),
                                             ("qwen3", 0.0), ("gpt2-scores-by-layer", 0.0),
                                            ("gpt2-scores-unscaled", 0.0)])
def test_losses_of_fifty_steps(tmp_path, family, weight):
    config = RunConfig(max_steps=STEPS, batch_size=3, gradient_accumulation=2, lora_r=4, lora_alpha=8.0,
                       lora_dropout=0.0, learning_rate=5e-3, schedule="linear", warmup_steps=5, weight_decay=0.01,
                       max_grad_norm=1.0, max_tokens_per_stream=128, prompt_loss_weight=weight, seed=7)
    groups = tiny.groups(12, branches=4, vocab_size=200, longer=4)
    ours, adapter, theirs = pair(family, config)
    steps = [batch for _, batch in steps_from(0, STEPS, groups, config)]

    parameters = reference.parameter_names(theirs)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, STEPS)
    expected, norms = [], []
    for batch in steps:
        optimizer.zero_grad()
        loss = reference.loss(theirs, batch, weight)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)))
        optimizer.step()
        schedule.step()
        expected.append(loss.item())

    with RunLog(tmp_path, quiet=True) as log:
        train(ours, adapter, groups, [], config, log, AdamW(adapter.parameters(), weight_decay=0.01), Progress(),
              lambda progress: None, lambda progress: None)
    found = np.array([float(line) for line in (tmp_path / "train_loss.txt").read_text().splitlines()])
    print(f"largest relative difference of a loss {np.abs(found / expected - 1).max():.1e}, "
          f"losses {found[0]:.3f} to {found[-1]:.3f}, gradient norms {min(norms):.2f} to {max(norms):.2f}")
    assert max(norms) > 1  # clipping has something to do
    assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name, parameter in adapter.parameters().items():
        assert relative(parameter.numpy(), parameters[name].detach().numpy()) < 1e-3, name


@pytest.mark.parametrize("weight, smoothing, family", [
    *((*case, family) for family in ("gpt2", "llama") for case in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (0.3, 0.4))),
    *((0.5, 0.1, family) for family in SOURCES if family not in ("gpt2", "llama"))])
def test_gradients(family, weight, smoothing):
    config = RunConfig(batch_size=8, lora_r=4, lora_alpha=8.0, lora_dropout=0.0, prompt_loss_weight=weight,
                       max_tokens_per_stream=4096)
    groups = tiny.groups(4, branches=4, vocab_size=200, longer=4)
    ours, adapter, theirs = pair(family, config, tiny.adapter_arrays)
    loss = reference.loss(theirs, groups, weight, smoothing)
    loss.backward()
    stream, = streams_of(groups, config)
    our_loss = stream_loss(ours, stream, smoothing) / stream.total_weight
    parameters = adapter.parameters()
    gradients = dict(zip(parameters, jt.grad(our_loss, list(parameters.values()))))
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    theirs_by_name = reference.parameter_names(theirs)
    assert set(theirs_by_name) == set(gradients)
    differences = {name: relative(gradients[name].numpy(), p.grad.numpy()) for name, p in theirs_by_name.items()}
    print(f"largest relative difference of a gradient {max(differences.values()):.1e}")
    assert max(differences.values()) < 1e-4
