"""Folding an adapter into the weights of its base."""

from __future__ import annotations

from typing import Iterator, Mapping

import numpy as np

from jittor_lora.lora.inject import Adapter
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.layout import Layout
from jittor_lora.runtime import jt

PROBE_TOKENS = 64


class MergedTensors(Mapping[str, np.ndarray]):
    """The checkpoint's tensors with the adapter's updates added, each computed when it is asked for.

    What is not adapted is the checkpoint's very array.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], adapter: Adapter):
        self._tensors = tensors
        self._layers = {f"{name}.weight": layer for name, layer in adapter.layers.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._layers:
            return self._tensors[name]
        layer = self._layers[name]
        weight = layer.merged_weight()
        return np.ascontiguousarray(weight.T) if layer.base.stored_transposed else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def merge_error(model: CausalLM, adapter: Adapter) -> tuple[float, float]:
    """How far merging moves the logits of a probe text, and how large they are.

    The adapter is merged and unmerged again; the base has its very weights afterwards.

    Returns: the largest difference and the largest absolute logit over 64 tokens drawn from the vocabulary.
    """
    length = min(PROBE_TOKENS, model.config.max_positions)
    tokens = np.random.Generator(np.random.Philox(0)).integers(0, model.config.vocab_size, length).astype(np.int32)

    def logits() -> np.ndarray:
        with jt.no_grad():
            hidden = model.hidden(tokens, np.arange(length, dtype=np.int32), Layout.plain(length))
            return model.logits(hidden).numpy()

    apart = logits()
    for layer in adapter.layers.values():
        layer.merge()
    try:
        merged = logits()
    finally:
        for layer in adapter.layers.values():
            layer.unmerge()
    return float(np.abs(merged - apart).max()), float(np.abs(apart).max())
