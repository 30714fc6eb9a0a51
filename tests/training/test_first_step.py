"""A run with a plain adapter compiles none of Jittor's operators, so its first step is as fast as the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from needs import needs_kernels

pytestmark = needs_kernels

# Jittor looks up operators new to this process by their compile command, which names the compiler.
RUN = """
import sys
import tiny
from jittor_lora.settings.run import RunConfig
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.inference.generate import generate_groups
from jittor_lora.model.load import build_model
from jittor_lora.ops.fused import call
from jittor_lora.system.runtime import jt
from jittor_lora.training.batches import streams_of
from jittor_lora.training.gradients import batch_gradients, mean_loss
from jittor_lora.training.optimizer import AdamW, gradient_norm

call("squared_norms", [(1,)], [jt.array([[1.0]])])  # the kernels and their one operator
jt.flags.cc_path = "/bin/false"
if "an operator" in sys.argv:
    (jt.array([[1.0, 2.0]]) + 1.0).sync()

source = tiny.VARIANTS[sys.argv[1]]
model = build_model(tiny.config(source), tiny.tensors(source))
adapter = inject(model, LoraConfig(r=2, alpha=8.0, dropout=0.1, target_modules=DEFAULT_TARGETS[source["model_type"]]))
config, parameters = RunConfig(batch_size=4, lora_dropout=0.1, max_tokens_per_stream=30), adapter.parameters()
optimizer = AdamW(parameters, weight_decay=0.1)
for examples in (tiny.groups(6), tiny.groups(1, branches=1)):
    streams = streams_of(examples, config)
    adapter.set_dropout(1, 2)
    loss, gradients = batch_gradients(model, streams, parameters)
    gradient_norm(gradients)
    optimizer.step(gradients, 0.01, 0.5)
    adapter.set_dropout()
    mean_loss(model, streams)
generate_groups(model, [(group.prefix, [branch.prompt for branch in group.branches]) for group in tiny.groups(6)], 3)
"""


def run(*arguments):
    tests = str(Path(__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", RUN, *arguments], env=environ, capture_output=True, text=True)


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-untied"])
def test_training_and_validation_compile_nothing(family):
    done = run(family)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_operator_would_be_noticed():
    assert run("gpt2", "an operator").returncode != 0
