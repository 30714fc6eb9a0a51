"""The low-rank updates of an adapter, as every format has them, and PEFT's form of them.

Readers of other programs' adapters return `LowRank`, and writers take it. PEFT's form, settings and arrays by name, is
what the rest of the package loads, measures and combines.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, NamedTuple, Optional

import numpy as np

from jittor_lora.formats.adapter_check import PREFIX
from jittor_lora.lora.combine import Factors

EMBEDDINGS = ("wte", "wpe", "embed_tokens")


class LowRank(NamedTuple):
    """
    Attributes:
        factors: module, by its name in the Hugging Face model → A, B and scaling; an embedding's A is (r, tokens).
        rank, alpha: of most modules, or of the parts that a module's update is made of.
        magnitudes: module → DoRA's m (out,); of all modules, or empty.
        dropout: on the input of A in training.
        base: name of the base model, if it is known.
    """

    factors: Mapping[str, Factors]
    rank: int
    alpha: float
    magnitudes: Mapping[str, np.ndarray] = {}
    dropout: float = 0.0
    base: Optional[str] = None

    @property
    def embeddings(self) -> frozenset[str]:
        """Those of the modules that are embeddings."""
        return frozenset(module for module in self.factors if last_part(module) in EMBEDDINGS)


def peft_arrays(factors: Mapping[str, Factors], embeddings: frozenset[str],
                magnitudes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under PEFT's names."""
    arrays = {}
    for module, pair in factors.items():
        for part, array in (("A", pair.a), ("B", pair.b)):
            kind = f"lora_embedding_{part}" if module in embeddings else f"lora_{part}.weight"
            arrays[f"{PREFIX}{module}.{kind}"] = array
    arrays.update({f"{PREFIX}{module}.lora_magnitude_vector": array for module, array in magnitudes.items()})
    return arrays


def peft_settings_of(updates: LowRank, layers: int | None = None) -> dict[str, Any]:
    """adapter_config.json of these updates.

    Args:
        layers: number of blocks of the base, if it is known; without it, blocks 0 to n - 1 are taken to be all.
    """
    factors, rank, alpha = updates.factors, updates.rank, updates.alpha
    kinds: dict[str, list[int | None]] = {}
    for module in factors:
        layer, kind = place(module)
        kinds.setdefault(kind, []).append(layer)
    blocks = sorted({layer for found in kinds.values() for layer in found if layer is not None})
    everywhere = blocks == list(range(layers or len(blocks))) and all(
        sorted(found) == blocks for found in kinds.values() if found != [None])
    # The scaling is alpha / r of one of the `parts` that make up an update.
    parts = {module: len(pair.a) / round(alpha / pair.scaling) for module, pair in factors.items()}
    values = {module: (len(pair.a), alpha * parts[module]) for module, pair in factors.items()}
    by_last: dict[str, set[tuple[int, float]]] = {}
    for module, value in values.items():
        by_last.setdefault(last_part(module), set()).add(value)
    ranks, alphas = {}, {}
    for module, (own_rank, own_alpha) in values.items():
        last = last_part(module)
        key = last if len(by_last[last]) == 1 else module
        if own_rank != rank:
            ranks[key] = own_rank
        if own_alpha != alpha:
            alphas[key] = own_alpha
    return {**plain_settings(), "base_model_name_or_path": updates.base, "r": rank, "lora_alpha": alpha,
            "lora_dropout": updates.dropout, "use_dora": bool(updates.magnitudes),
            "target_modules": _short(kinds) if everywhere else sorted(factors),
            "fan_in_fan_out": any(module.startswith("transformer.h.") for module in factors),
            "rank_pattern": ranks, "alpha_pattern": alphas}


def plain_settings() -> dict[str, Any]:
    """adapter_config.json of a plain adapter, with PEFT's defaults."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "r": 8, "lora_alpha": 8,
        "lora_dropout": 0.0, "target_modules": [], "fan_in_fan_out": False, "bias": "none", "init_lora_weights": True,
        "inference_mode": True, "use_rslora": False, "use_dora": False, "modules_to_save": None, "rank_pattern": {},
        "alpha_pattern": {}, "layers_to_transform": None, "layers_pattern": None, "revision": None,
    }


def uniform(factors: Mapping[str, Factors]) -> tuple[int, float, dict[str, Factors]]:
    """Rank and scaling, one for all, and the updates with these: smaller ranks are padded with zeros, other scalings
    multiplied into B."""
    rank = max(len(pair.a) for pair in factors.values())
    scaling = next(iter(factors.values())).scaling
    made = {}
    for name, pair in factors.items():
        missing = rank - len(pair.a)
        b = pair.b if pair.scaling == scaling else pair.b * np.float32(pair.scaling / scaling)
        made[name] = Factors(np.pad(pair.a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing))), scaling)
    return rank, scaling, made


def place(module: str) -> tuple[int | None, str]:
    """The number of a module's block, None outside the blocks, and its name within it."""
    match = re.fullmatch(r"(?:.*?\.)?(\d+)\.(.+)", module)
    return (int(match.group(1)), match.group(2)) if match else (None, module)


def last_part(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def _short(kinds: Mapping[str, list[int | None]]) -> list[str]:
    """The last part of each name, or the last two where another, unadapted kind has the same last part."""
    both = {"attn.c_proj", "mlp.c_proj"} <= kinds.keys()
    return sorted({kind if kind.endswith("c_proj") and not both else last_part(kind) for kind in kinds})
