"""Adapters of mlx-lm: a folder with `adapter_config.json` and `adapters.safetensors`.

For a layer M, `M.lora_a` is (in, r) and `M.lora_b` (r, out), so that y = W x + scale · lora_bᵀ lora_aᵀ x: PEFT's A and
B transposed, and `scale` is its alpha / r. An embedding's lora_a is (tokens, r). With DoRA, `M.m` (out,) replaces the
norms of the rows of W + scale · B A, as in PEFT. Names are those of the Hugging Face model, but for GPT-2, whose
`transformer` is `model`. Rank and scale are one for all layers. mlx-lm puts an update into every layer that `keys`
names in the last `num_layers` blocks; one that the file lacks is zero, so the tensors alone say what is adapted.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write, write_json
from jittor_lora.files.finite import not_finite
from jittor_lora.formats.adapter_check import open_safetensors, read_object
from jittor_lora.formats.adapter_files import CONFIG_FILE
from jittor_lora.formats.low_rank import EMBEDDINGS, LowRank, last_part, place, uniform
from jittor_lora.formats.opened_adapter import (
    OpenedAdapter,
    is_positive,
    is_rank,
    is_share,
    name_or_none,
    refuse,
    wrong_pair,
    wrong_settings,
    wrong_tensors,
)
from jittor_lora.formats.safetensors_file import write_safetensors
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import MAX_RANK
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.config import ModelConfig

WEIGHTS_FILE = "adapters.safetensors"
_KIND, _PARAMETERS = "fine_tune_type", "lora_parameters"
_NAME = re.compile(r"(\w+(?:\.\w+)*)\.(lora_a|lora_b|m)", re.ASCII)
_PARTS = {"lora_a": "A", "lora_b": "B", "m": "m"}
_OF_GPT2 = re.compile(r"(?P<root>model|transformer)\.(?=(?:h|wte|wpe)\b)")


def is_here(folder: Path) -> bool:
    """Does the folder have mlx-lm's settings? They are in a file of the name that PEFT's have."""
    path = folder / CONFIG_FILE
    try:
        return path.is_file() and _is_mlx(read_object(path))
    except UserError:  # which reading it as PEFT's reports
        return False


def _is_mlx(values: Mapping[str, Any]) -> bool:
    return "peft_type" not in values and (_KIND in values or _PARAMETERS in values)


def opened(folder: Path) -> OpenedAdapter:
    """
    Raises:
        UserError: settings are missing, wrong or not those of LoRA or DoRA; all are listed.
    """
    path = folder / CONFIG_FILE
    values = read_object(path)
    kind, given = values.get(_KIND, "lora"), values.get(_PARAMETERS)
    if kind == "full":
        raise UserError(f"{path}: {_KIND}: full: the file holds whole weights of fine-tuned blocks, not an adapter. "
                        "Write the model with `mlx_lm.fuse`, and give that folder as --base.")
    fields = given if isinstance(given, dict) else {}
    refuse(path, wrong_settings([
        (_KIND, kind, lambda value: value in ("lora", "dora"), "lora or dora"),
        (_PARAMETERS, given, lambda value: isinstance(value, dict), "an object with rank and scale"),
        *((f"{_PARAMETERS}.{name}", fields.get(name, default), check, expected) for name, default, check, expected in (
            ("rank", None, is_rank, f"a whole number from 1 to {MAX_RANK}"),
            ("scale", None, is_positive, "a number above 0"),
            ("dropout", 0.0, is_share, "a number from 0 to below 1")) if fields),
    ]))
    read = partial(_read, folder / WEIGHTS_FILE, fields, kind == "dora", name_or_none(values.get("model")))
    return OpenedAdapter(path, folder / WEIGHTS_FILE, name_or_none(values.get("model")), read)


def _read(path: Path, fields: Mapping[str, Any], dora: bool, base: Optional[str],
          config: Optional[ModelConfig]) -> LowRank:
    file, rank = open_safetensors(path), fields["rank"]
    refuse(path, list(wrong_tensors(file, _NAME, "model.layers.0.self_attn.q_proj.lora_a", (1, 2))))
    refuse(path, [f"{name}: holds numbers that are not finite ({what})" for name, what in not_finite(file).items()])
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name in file:
        module, part = _NAME.fullmatch(name).groups()
        modules.setdefault(module, {})[_PARTS[part]] = file[name] if part == "m" else file[name].T
    wrong = [f"{module}: {problem}" for module, parts in modules.items() for problem in [_problem(parts, rank, dora)]
             if problem]
    wrong += [] if modules else ["holds no arrays"]
    refuse(path, wrong)
    named = {_OF_GPT2.sub("transformer.", module): parts for module, parts in modules.items()}
    updates = LowRank({module: Factors(parts["A"], parts["B"], float(fields["scale"]))
                       for module, parts in named.items()}, rank, fields["scale"] * rank,
                      {module: parts["m"] for module, parts in named.items()} if dora else {},
                      float(fields.get("dropout", 0.0)), base)
    refuse(path, list(_unlike_peft(updates, config)))
    return updates


def _problem(parts: Mapping[str, np.ndarray], rank: int, dora: bool) -> str | None:
    if dora != ("m" in parts):
        return f"expected {'a magnitude m' if dora else 'no magnitude m'}, as {_KIND} says"
    if any(array.ndim != (1 if name == "m" else 2) for name, array in parts.items()):
        return f"expected two matrices{' and a vector' if dora else ''}, found shapes " + ", ".join(
            str(array.shape) for array in parts.values())
    problem = wrong_pair(parts, "lora_a", "lora_b", rank)
    if problem is None and dora and parts["m"].shape != parts["B"].shape[:1]:
        return f"expected m of shape {parts['B'].shape[:1]}, found {parts['m'].shape}"
    return problem


def _unlike_peft(updates: LowRank, config: Optional[ModelConfig]) -> Iterator[str]:
    """Modules whose update mlx-lm computes otherwise than PEFT."""
    for module in updates.factors:
        embedding = last_part(module) in EMBEDDINGS
        if embedding and updates.magnitudes:
            yield f"{module}: DoRA scales the rows of an embedding in mlx-lm, its columns in PEFT"
        elif config and config.tied_head and (embedding or module == OUTPUT_HEAD) and last_part(module) != "wpe":
            yield (f"{module}: this base's head is its embedding, and mlx-lm updates both together, where PEFT updates "
                   "one of the two")


def write(folder: Path, updates: LowRank, config: ModelConfig) -> None:
    """Write the two files into the existing `folder`, float32.

    Args:
        config: of the base.

    Raises:
        UserError: mlx-lm would compute something else, or an array is not finite; all are listed.
    """
    refuse(folder, list(_unlike_peft(updates, config)))
    rank, scale, factors = uniform(updates.factors)
    arrays: dict[str, np.ndarray] = {}
    for module, pair in factors.items():
        name = _OF_GPT2.sub("model.", module)
        arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"] = pair.a.T, pair.b.T
        if updates.magnitudes:
            arrays[f"{name}.m"] = updates.magnitudes[module]
    places = {place(module) for module in factors}
    first = min((block for block, _ in places if block is not None), default=config.layers - 1)
    keys = sorted({key if block is not None else _OF_GPT2.sub("model.", key) for block, key in places})
    with atomic_write(folder / WEIGHTS_FILE, "wb") as stream:
        write_safetensors(stream, arrays, {name: arrays[name].shape for name in sorted(arrays)}, {"format": "mlx"},
                          folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, {
        "model": updates.base, _KIND: "dora" if updates.magnitudes else "lora", "num_layers": config.layers - first,
        _PARAMETERS: {"rank": rank, "scale": scale, "dropout": updates.dropout, "keys": keys}})
