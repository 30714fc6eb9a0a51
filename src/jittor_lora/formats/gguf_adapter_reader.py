"""Adapters in llama.cpp's GGUF files, as its convert_lora_to_gguf.py writes them.

`general.type` is adapter, `adapter.type` lora. For each matrix NAME of the base's file there are NAME.lora_a (r, in)
and NAME.lora_b (out, r), with llama.cpp's names and order of rows, F32, F16, BF16 or Q8_0. The update is
`adapter.lora.alpha` / r · B A with the r of that matrix; an alpha of 0, or none, means a scaling of 1.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.finite import all_finite
from jittor_lora.formats.adapter_check import LARGEST_NUMBER, LONGEST_NAME, show
from jittor_lora.formats.first_bytes import GGUF, first_bytes
from jittor_lora.formats.gguf import _place
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.low_rank import LowRank
from jittor_lora.formats.opened_adapter import (
    OpenedAdapter,
    is_rank,
    name_or_none,
    needs_base,
    refuse,
    wrong_pair,
    wrong_settings,
)
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import MAX_RANK
from jittor_lora.model.config import ModelConfig, tensor_shapes

_ALPHA, _ACTIVATION = "adapter.lora.alpha", "adapter.alora.invocation_tokens"
_NAME = re.compile(r"([a-z0-9_.]+)\.weight\.lora_([ab])", re.ASCII)
_NORM = re.compile(r"[a-z0-9_.]+_norm\.weight", re.ASCII)  # which llama.cpp skips
_HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", re.ASCII)
_ARCHITECTURES = {"mistral": "llama"}  # family → llama.cpp's name, where it is another one
_MOST = 20_000  # tensors


def is_here(path: Path) -> bool:
    """Is it a GGUF file?"""
    try:
        return path.is_file() and first_bytes(path).startswith(GGUF)
    except UserError:
        return False


def opened(path: Path) -> OpenedAdapter:
    """
    Raises:
        UserError: the file is damaged, no adapter, or not one that LoRA is; all reasons are listed.
    """
    file = GgufFile(path)
    values = file.metadata
    if values.get("general.type", "model") == "model":
        raise UserError(f"{path}: expected an adapter; found a GGUF file of a model. Name it as --base.")
    refuse(path, wrong_settings([
        ("general.type", values.get("general.type"), lambda value: value == "adapter", "adapter"),
        ("adapter.type", values.get("adapter.type"), lambda value: value == "lora", "lora"),
        (_ALPHA, values.get(_ALPHA, 0.0), lambda value: type(value) is float and 0 <= value <= LARGEST_NUMBER,
         "a number, 0 or above"),
        (_ACTIVATION, values.get(_ACTIVATION), lambda value: value is None, "none, as only activated LoRA has them"),
    ]))
    return OpenedAdapter(path, path, _base(values), partial(_read, file, values.get("general.architecture")))


def _base(values: Mapping[str, Any]) -> Optional[str]:
    """The model on the Hub that the adapter says it is of."""
    match = _HUB.fullmatch(name_or_none(values.get("general.base_model.0.repo_url")) or "")
    return match.group(1) if match else None


def _read(file: GgufFile, architecture: Any, config: Optional[ModelConfig]) -> LowRank:
    path = file.path
    if config is None:
        raise needs_base(path, "llama.cpp's order of rows depends on the base's heads")
    expected = _ARCHITECTURES.get(config.family, config.family)
    if architecture != expected:
        raise UserError(f"{path}: general.architecture: expected {expected}, that of the base, found "
                        f"{show(architecture)}. Name the base that the adapter was trained on.")
    refuse(path, _wrong_names(file))
    places = _places(config)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    unknown, infinite = [], []
    for name in file:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        stored, part = match.groups()
        if stored not in places:
            unknown.append(f"{name}: no such matrix in this base, or none that is adapted")
            continue
        array = file[name]
        if not all_finite(array):
            infinite.append(f"{name}: holds numbers that are not finite")
        pairs.setdefault(stored, {})[part.upper()] = array
    refuse(path, unknown, infinite, [] if pairs or unknown else ["holds no arrays"])
    ranks = Counter(pair["B"].shape[1] for pair in pairs.values() if "B" in pair)
    wrong = [f"{stored}.weight: {problem}" for stored, pair in pairs.items()
             for problem in [_problem(pair, places[stored][2])] if problem]
    refuse(path, wrong)
    rank = ranks.most_common(1)[0][0]
    alpha = float(file.metadata.get(_ALPHA, 0.0))
    factors = {}
    for stored, pair in pairs.items():
        module, restore, _ = places[stored]
        scaling = alpha / len(pair["A"]) if alpha else 1.0
        factors[module] = Factors(pair["A"], np.ascontiguousarray(restore(pair["B"])), scaling)
    return LowRank(factors, rank, alpha or float(rank), base=_base(file.metadata))


def _wrong_names(file: GgufFile) -> list[str]:
    if len(file) > _MOST:
        return [f"expected at most {_MOST:,} tensors of LoRA, found {len(file):,}"]
    return [f"{show(name)}: expected a matrix with a name such as blk.0.attn_q.weight.lora_a, found shape {entry.shape}"
            for name, entry in file.entries.items() if not _NORM.fullmatch(name) and (
                len(name) > LONGEST_NAME or not _NAME.fullmatch(name) or len(entry.shape) != 2 or 0 in entry.shape)]


def _problem(pair: Mapping[str, np.ndarray], shape: tuple[int, int]) -> str | None:
    """
    Args:
        shape: (out, in) of the matrix.
    """
    if len(pair) != 2:
        return wrong_pair(pair, "lora_a", "lora_b", 0)
    a, b = pair["A"], pair["B"]
    if len(a) != b.shape[1] or not is_rank(len(a)) or (len(b), a.shape[1]) != shape:
        return (f"expected lora_a (r, {shape[1]}) and lora_b ({shape[0]}, r) with r at most {MAX_RANK}, found "
                f"{a.shape} and {b.shape}")
    return None


def _places(config: ModelConfig) -> dict[str, tuple[str, Any, tuple[int, int]]]:
    """llama.cpp's name of each matrix of a linear layer → the module's name, what restores the order of B's rows, and
    the matrix's shape (out, in)."""
    places = {}
    for name, shape in tensor_shapes(config).items():
        stored, restore = _place(name, config)
        if len(shape) == 2 and stored.endswith(".weight") and (stored.startswith("blk.") or stored == "output.weight"):
            transposed = config.network == "gpt2" and name != "lm_head.weight"
            places[stored[: -len(".weight")]] = (name[: -len(".weight")], _unchanged if transposed else restore,
                                                 shape[::-1] if transposed else shape)
    return places


def _unchanged(rows: np.ndarray) -> np.ndarray:
    return rows
