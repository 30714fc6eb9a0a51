"""Merging adapters into the weights of their base."""

from __future__ import annotations

from typing import Iterator, Mapping

import numpy as np

from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError, some_of_each
from jittor_lora.lora.adapted import AdaptedModule
from jittor_lora.lora.inject import adapters_of
from jittor_lora.lora.layer import LoraLinear
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.families import FAMILIES
from jittor_lora.model.modules import leaf_modules
from jittor_lora.system.runtime import jt

PROBE_TOKENS = 64
TOKEN_EMBEDDINGS = {f"{family.body}.{family.embedding}" for family in FAMILIES.values()}


class MergedTensors(Mapping[str, np.ndarray]):
    """The checkpoint's tensors with the active adapters merged in, each computed when it is asked for.

    A tensor that is not adapted is the checkpoint's own array.

    Args:
        tensors: of the checkpoint that the model was built from.
        untied: also include `lm_head.weight`, of a head that was tied to the embedding.

    Raises:
        UserError: an adapter has biases on B where the base has none.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], model: CausalLM, untied: bool = False):
        self._tensors = tensors
        self._names = dict.fromkeys([*tensors, *(["lm_head.weight"] if untied else [])])
        self._modules = {leaf.name: leaf.module for leaf in leaf_modules(model)}
        homeless = [name for name, module in self._modules.items() if isinstance(module, LoraLinear)
                    and module.base.bias is None and module.effective_bias() is not None]
        if homeless:
            raise UserError("lora_bias: the adapter has biases that this base has no place for, so it cannot be merged:"
                            "\n  " + "\n  ".join(some_of_each(homeless)))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        module, _, part = name.rpartition(".")
        adapted = self._modules[module]
        if not self.is_merged(name):
            return self._tensors[name] if name in self._tensors else adapted.weight.numpy()
        if part == "bias":
            return adapted.effective_bias()
        weight = adapted.effective_weight()
        return np.ascontiguousarray(weight.T) if getattr(adapted.base, "stored_transposed", False) else weight

    def is_merged(self, name: str) -> bool:
        """Whether active adapters have a version of the tensor's module."""
        adapted = self._modules[name.rpartition(".")[0]]
        return isinstance(adapted, AdaptedModule) and bool(adapted.versions_of())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unties_head(model: CausalLM) -> bool:
    """Do the active adapters change the embedding or the head of a model that ties the two?"""
    changed = {leaf.name for leaf in leaf_modules(model)
               if isinstance(leaf.module, AdaptedModule) and leaf.module.versions_of()}
    return model.config.tied_head and not changed.isdisjoint({*TOKEN_EMBEDDINGS, OUTPUT_HEAD})


def merge_error(model: CausalLM) -> tuple[float, float]:
    """How far merging the active adapters moves the logits of a probe text, and how large these are.

    The adapters are unmerged again; the base's weights never change.

    Returns: the largest difference and the largest absolute logit, over 64 random tokens.
    """
    length = min(PROBE_TOKENS, model.config.max_positions)
    tokens = np.random.Generator(np.random.Philox(0)).integers(0, model.config.vocab_size, length).astype(np.int32)

    def logits() -> np.ndarray:
        with jt.no_grad():
            hidden = model.hidden(tokens, np.arange(length, dtype=np.int32), Layout.plain(length))
            return model.logits(hidden).numpy()

    adapters, unmerged = adapters_of(model), logits()
    adapters.merge()
    try:
        merged = logits()
    finally:
        adapters.unmerge()
    return float(np.abs(merged - unmerged).max()), float(np.abs(unmerged).max())
