"""The sizes of an adapter's updates, as it is loaded: its files may have changed since."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np

from jittor_lora.formats.low_rank import place
from jittor_lora.lora.adapter import Adapter
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.embedding import EmbeddingUpdate
from jittor_lora.lora.spectrum import difference, spectrum


class Arrays(NamedTuple):
    """Those of one module.

    Attributes:
        a, b: (r, in) and (out, r), as trained.
        added: whose product is added to the weight: with PiSSA and OLoRA also what was taken out of it.
    """

    a: np.ndarray
    b: np.ndarray
    added: Factors


@dataclass
class ModuleNorms:
    """Frobenius norms of one module's A, B and scaling · B A, and the effective rank of the last.

    Attributes:
        layer: number of the block; None outside the blocks.
        kind: name within the block.
    """

    module: str
    layer: Optional[int]
    kind: str
    rank: int
    a: float
    b: float
    update: float
    effective_rank: float


@dataclass
class ModuleDifference:
    """The norm of second − first relative to that of the first, and the cosine between them; None where one is zero."""

    module: str
    layer: Optional[int]
    kind: str
    relative: Optional[float]
    cosine: Optional[float]


def copied(adapter: Adapter) -> dict[str, Arrays]:
    """The arrays of all low-rank updates, by module; to be called in the thread that computes."""
    found = {}
    for module, update in adapter.updates.items():
        a = update.lora_A.numpy()
        if isinstance(update, EmbeddingUpdate):
            b = update.lora_B.numpy()
            found[module] = Arrays(a, b, Factors(a, b, update.scaling))
        else:
            found[module] = Arrays(a, update.effective_b(), Factors(*update.factors(), 1.0))
    return found


def norms(arrays: Mapping[str, Arrays]) -> list[ModuleNorms]:
    """In the network's order."""
    rows = []
    for module, (a, b, added) in arrays.items():
        layer, kind = place(module)
        size = spectrum(added)
        rows.append(ModuleNorms(module, layer, kind, len(a), _norm(a), _norm(b),
                                size.frobenius, size.effective_rank))
    return rows


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))


def differences(first: Mapping[str, Arrays], second: Mapping[str, Arrays]) -> list[ModuleDifference]:
    """Of the modules that both have."""
    rows = []
    for module in first:
        if module in second:
            found = difference(first[module].added, second[module].added)
            rows.append(ModuleDifference(module, *place(module), *(None if math.isnan(value) else value
                                                                   for value in found)))
    return rows
