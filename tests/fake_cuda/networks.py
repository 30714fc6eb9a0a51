"""Trains and decodes on the fake CUDA runtime, and prints what was launched as JSON.

Layers, heads and lengths are those of GPT-2 124M, and a Llama's like them; widths are small, which changes no launch.
"""

from __future__ import annotations

import json
import time

import numpy as np

import tiny
from fake_cuda import toolkit
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import Stream
from jittor_lora.inference.generate import generate
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt
from jittor_lora.training.gradients import batch_gradients
from jittor_lora.training.optimizer import AdamW, gradient_norm

SEQUENCES, LENGTH = 8, 256
SOURCES = {
    "gpt2": {**tiny.GPT2, "vocab_size": 50257, "n_layer": 12, "n_head": 12, "n_positions": LENGTH},
    "llama": {**tiny.LLAMA, "vocab_size": 32000, "num_hidden_layers": 12, "max_position_embeddings": LENGTH},
}


def plain_stream(vocab_size: int) -> Stream:
    """Sequences of random tokens, each of which is scored."""
    rows = SEQUENCES * LENGTH
    return Stream(tiny.tokens(rows, vocab_size=vocab_size), np.tile(np.arange(LENGTH, dtype=np.int32), SEQUENCES),
                  Layout.plain(*[LENGTH] * SEQUENCES), np.arange(rows, dtype=np.int32),
                  np.arange(rows, dtype=np.int32), tiny.tokens(rows, 1, vocab_size), np.ones(rows, np.float32), [])


def counted(run) -> dict:
    """What `run` launches the second time, when its kernels are compiled; and the seconds of both times."""
    seconds = []
    for _ in range(2):
        toolkit.reset()
        start = time.time()
        run()
        jt.sync_all(True)
        seconds.append(round(time.time() - start, 2))
    calls = toolkit.calls()
    return {"launches": calls.launches, "products": sum(calls.products.values()), "kernels": len(calls.kernels),
            "copies": sum(calls.copies.values()), "seconds": seconds}


def measured(source: dict) -> dict:
    model = build_model(tiny.config(source), tiny.tensors(source))
    adapter = inject(model, LoraConfig(r=8, alpha=16.0, dropout=0.1,
                                       target_modules=DEFAULT_TARGETS[source["model_type"]]))
    parameters = adapter.parameters()
    optimizer, stream = AdamW(parameters, weight_decay=0.1), plain_stream(source["vocab_size"])

    def step() -> None:
        adapter.set_dropout(1, 2)
        _, gradients = batch_gradients(model, [stream], parameters)
        gradient_norm(gradients)
        optimizer.step(gradients, 1e-3, 0.5)
        adapter.set_dropout()

    prompts, new = [tiny.tokens(5).tolist(), tiny.tokens(9, 1).tolist()], 4
    return {"step": counted(step), "decoding": counted(lambda: generate(model, [], prompts, new)),
            "decoding_longer": counted(lambda: generate(model, [], prompts, 2 * new)),
            "adapter_arrays": len(parameters)}


if __name__ == "__main__":
    found = {"use_cuda": jt.flags.use_cuda, "archs": list(jt.flags.cuda_archs), "flags": jt.flags.nvcc_flags,
             "compilers": jt.flags.use_parallel_op_compiler}
    with ops.portable_operations():
        found["portable"] = {family: measured(source) for family, source in SOURCES.items()}
    found["fused"] = {family: measured(source) for family, source in SOURCES.items()}
    print(json.dumps(found))
