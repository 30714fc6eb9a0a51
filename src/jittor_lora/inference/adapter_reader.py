"""Decoding with an adapter of its own for each group of prompts."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from jittor_lora.inference.cpu_reader import reader_of
from jittor_lora.inference.reader import Turn
from jittor_lora.lora.inject import Adapters, adapters_of
from jittor_lora.model.causal_lm import CausalLM


class AdapterReader:
    """What reads texts with one adapter, or with none, whatever is active otherwise. The packed base is shared.

    Args:
        name: of the adapter; None for the base alone.
    """

    def __init__(self, model: CausalLM, adapters: Adapters, name: str | None):
        self._adapters, self._names = adapters, () if name is None else (name,)
        with adapters.only(*self._names):
            self._reader = reader_of(model)

    def open(self, prefix: int, rooms: Sequence[int]) -> Any:
        return self._reader.open(prefix, rooms)

    def fork(self, group: Any, length: int, rooms: Sequence[int]) -> Any:
        return self._reader.fork(group, length, rooms)

    def rewind(self, group: Any, branch: int, length: int) -> None:
        self._reader.rewind(group, branch, length)

    def copy(self, group: Any, source: int, target: int) -> None:
        self._reader.copy(group, source, target)

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        with self._adapters.only(*self._names):
            return self._reader.likeliest(turns)

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        with self._adapters.only(*self._names):
            return self._reader.logits(turns)


def readers_of(model: CausalLM, names: Sequence[str | None]) -> list[AdapterReader]:
    """A reader for each group, from the names of the groups' adapters; groups of one adapter share theirs.

    Raises:
        UserError: there is no such adapter.
    """
    adapters = adapters_of(model)
    made = {name: AdapterReader(model, adapters, name) for name in dict.fromkeys(names)}
    return [made[name] for name in names]
