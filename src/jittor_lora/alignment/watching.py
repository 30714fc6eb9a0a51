"""Records what enters and leaves the modules of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import leaf_modules
from jittor_lora.system.runtime import jt


class _Watched:
    """Stands in for a module while it is watched."""

    def __init__(self, name: str, module: jt.Module, arrays: dict[str, np.ndarray]):
        self._name, self._module, self._arrays = name, module, arrays

    def __call__(self, x, *rest: Any):
        y = self._module(x, *rest)
        self._arrays[f"input.{self._name}"], self._arrays[f"output.{self._name}"] = _rows(x), _rows(y)
        return y

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def watched(model: CausalLM) -> Iterator[Mapping[str, np.ndarray]]:
    """Within the block, "input.<module>" and "output.<module>" (rows, features) of the last pass, in the order of
    computation. The output head is left out: the network does not call it as a module."""
    arrays: dict[str, np.ndarray] = {}
    leaves = [leaf for leaf in leaf_modules(model) if leaf.name != OUTPUT_HEAD]
    for leaf in leaves:
        setattr(leaf.parent, leaf.attribute, _Watched(leaf.name, leaf.module, arrays))
    try:
        yield arrays
    finally:
        for leaf in leaves:
            setattr(leaf.parent, leaf.attribute, leaf.module)


def _rows(value: Any) -> np.ndarray:
    """Ids (N,), rows (N, D) or heads (N, H, d) as (N, features)."""
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return array.reshape(len(array), -1).astype(np.float32)
