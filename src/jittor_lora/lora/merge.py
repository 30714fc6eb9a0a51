"""Folding adapters into the weights of their base."""

from __future__ import annotations

from typing import Iterator, Mapping

import numpy as np

from jittor_lora.data.layout import Layout
from jittor_lora.lora.adapted import Adapted
from jittor_lora.lora.inject import adapters_of
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import leaves
from jittor_lora.system.runtime import jt

PROBE_TOKENS = 64
TABLES = ("transformer.wte", "model.embed_tokens")


class MergedTensors(Mapping[str, np.ndarray]):
    """The checkpoint's tensors as the adapters that act make them, each computed when it is asked for.

    What is not adapted is the checkpoint's very array.

    Args:
        tensors: of the checkpoint the model was made from.
        untied: also `lm_head.weight`, of a head that was tied to the embedding.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], model: CausalLM, untied: bool = False):
        self._tensors = tensors
        self._names = dict.fromkeys([*tensors, *(["lm_head.weight"] if untied else [])])
        self._modules = {leaf.name: leaf.module for leaf in leaves(model)}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        module, _, part = name.rpartition(".")
        adapted = self._modules[module]
        if not (isinstance(adapted, Adapted) and adapted.acting_versions()):
            return self._tensors[name] if name in self._tensors else adapted.weight.numpy()
        if part == "bias":
            return adapted.effective_bias()
        weight = adapted.effective_weight()
        return np.ascontiguousarray(weight.T) if getattr(adapted.base, "stored_transposed", False) else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unties_head(model: CausalLM) -> bool:
    """Do the adapters that act change the embedding or the head of a model that ties the two?"""
    changed = {leaf.name for leaf in leaves(model)
               if isinstance(leaf.module, Adapted) and leaf.module.acting_versions()}
    return model.config.tied_head and not changed.isdisjoint((*TABLES, OUTPUT_HEAD))


def merge_error(model: CausalLM) -> tuple[float, float]:
    """How far merging moves the logits of a probe text, and how large they are.

    The adapters that act are merged and unmerged again; the base has its very weights all the time.

    Returns: the largest difference and the largest absolute logit over 64 tokens drawn from the vocabulary.
    """
    length = min(PROBE_TOKENS, model.config.max_positions)
    tokens = np.random.Generator(np.random.Philox(0)).integers(0, model.config.vocab_size, length).astype(np.int32)

    def logits() -> np.ndarray:
        with jt.no_grad():
            hidden = model.hidden(tokens, np.arange(length, dtype=np.int32), Layout.plain(length))
            return model.logits(hidden).numpy()

    adapters, apart = adapters_of(model), logits()
    adapters.merge()
    try:
        merged = logits()
    finally:
        adapters.unmerge()
    return float(np.abs(merged - apart).max()), float(np.abs(apart).max())
