"""Small networks to decode with, and what readers make of them."""

from __future__ import annotations

import numpy as np

import tiny
from jittor_lora import ops
from jittor_lora.inference.portable_reader import PortableReader
from jittor_lora.inference.reader import Turn
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model

# Widths beside those of vectors and panels, an odd head, several panels of keys; and sizes like those of real models.
ODD_HEADS = {**tiny.GPT2, "n_embd": 35, "n_head": 5, "n_inner": 67, "activation_function": "relu", "n_positions": 120}
ALIGNED = {**tiny.LLAMA, "hidden_size": 64, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
           "intermediate_size": 96, "vocab_size": 200, "max_position_embeddings": 120}
VARIANTS = {**tiny.VARIANTS, "odd-heads": ODD_HEADS, "aligned": ALIGNED}


def network(source: dict, precision: str = "fp32"):
    return build_model(tiny.config(source), tiny.tensors(source), precision)


def adapted(source: dict, precision: str = "fp32", r: int = 5, qv_only: bool = False):
    """With an adapter on every linear layer, its values large enough to matter."""
    model = network(source, precision)
    adapter = inject(model, LoraConfig(r=r, alpha=8.0, target_modules="all-linear", qv_only=qv_only))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return model, adapter


def ids(count: int, seed: int = 0) -> list[int]:
    return tiny.tokens(count, seed).tolist()


def read(reader, prefix: int, branches: list[int], steps: int = 2, seed: int = 0) -> list[np.ndarray]:
    """Logits (branches, V) after the prompts of one group, and after each of `steps` more tokens of each branch."""
    group = reader.open(prefix, [length + steps for length in branches])
    found = [reader.logits([Turn(group, ids(prefix, seed), [(b, ids(n, seed + b)) for b, n in enumerate(branches)])])]
    for step in range(steps):
        found.append(reader.logits([Turn(group, (), [(b, ids(1, 50 + step + b)) for b in range(len(branches))])]))
    return found


def check_close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for ours, theirs in zip(found, expected):
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def operators(model, *shape, **more) -> list[np.ndarray]:
    with ops.portable_operations():
        return read(PortableReader(model), *shape, **more)
