"""mlx-lm on a small base, in a process of its own: what it computes with an adapter, and adapters that it trains.

    python mlx_peer.py logits BASE ADAPTER TOKENS.npy LOGITS.npy
    python mlx_peer.py train BASE ADAPTER lora|dora RANK SCALE LAYERS KEYS
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx_lm.lora
import numpy as np
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model


class Examples(list):
    """Token ids, as `CacheDataset` takes them."""

    def process(self, example):
        return example, 0


def logits(base: str, adapter: str, tokens: str, output: str) -> None:
    model = load_adapters(load_model(Path(base))[0], adapter)
    model.eval()
    np.save(output, np.array(model(mx.array(np.load(tokens))[None])[0].astype(mx.float32)))


def train(base: str, adapter: str, kind: str, rank: str, scale: str, layers: str, keys: str) -> None:
    parameters = {"rank": int(rank), "scale": float(scale), "dropout": 0.0, "keys": keys.split(",")}
    args = SimpleNamespace(**{**mlx_lm.lora.CONFIG_DEFAULTS, "model": base, "fine_tune_type": kind, "iters": 4,
                              "num_layers": int(layers), "learning_rate": 0.02, "adapter_path": adapter,
                              "lora_parameters": parameters, "max_seq_length": 33, "batch_size": 2, "val_batches": 1})
    draw = np.random.RandomState(0)
    examples = Examples([draw.randint(0, 61, 20).tolist() for _ in range(4)])
    mlx_lm.lora.train_model(args, load_model(Path(base))[0], examples, examples)


if __name__ == "__main__":
    {"logits": logits, "train": train}[sys.argv[1]](*sys.argv[2:])
