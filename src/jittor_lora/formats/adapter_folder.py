"""An adapter's files as arrays in PEFT's form, for whatever needs no base model: inspecting and combining adapters.

`formats/peft.py` loads adapters into networks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Union

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_folder, atomic_write, write_json
from jittor_lora.formats.adapter_check import PREFIX, check_effort, show
from jittor_lora.formats.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from jittor_lora.formats.adapter_source import AdapterSource, open_adapter
from jittor_lora.formats.hugging_face import shorten
from jittor_lora.formats.low_rank import LowRank, peft_arrays, peft_settings_of
from jittor_lora.formats.safetensors_file import write_safetensors
from jittor_lora.formats.tensor_file import TensorFile
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import LoraConfig
from jittor_lora.model.config import ModelConfig

_PART = re.compile(re.escape(PREFIX) + r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")


@dataclass
class AdapterFolder:
    """The contents of a folder.

    Attributes:
        settings: adapter_config.json.
        factors: adapted module → A, B and scaling, float32; an embedding's A is (r, tokens).
        embeddings: which of these modules are embeddings.
        others: PEFT's names of all other tensors (DoRA magnitudes, biases, modules saved whole) → their shapes.
        bytes: size of settings and weights together.
    """

    folder: Path
    settings: dict[str, Any]
    factors: dict[str, Factors]
    embeddings: frozenset[str]
    others: dict[str, tuple[int, ...]]
    bytes: int

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        low_rank = sum(f.a.size + f.b.size for f in self.factors.values())
        return low_rank + sum(math.prod(shape) for shape in self.others.values())


def read_adapter_folder(source: Union[Path, AdapterSource], numbers: bool = True,
                        base: Optional[ModelConfig] = None) -> AdapterFolder:
    """
    Args:
        numbers: also check that all numbers are finite, which reads all of them.
        base: of the base model, which some formats need.

    Raises:
        UserError: files are missing, damaged or hostile; a matrix lacks its counterpart; ranks differ from the
            settings; all are listed.
    """
    source = open_adapter(source)
    settings, file = source.contents(base, numbers)
    weights, config_path = file.path, source.config_path
    halves, others = _halves(file)
    check_effort(config_path, settings, list(halves))
    config = _config(settings)
    wrong, factors = [], {}
    for module, parts in halves.items():
        a, b = parts.get("A"), parts.get("B")
        if a is None or b is None:
            wrong.append(f"{module}: expected both lora_A and lora_B, found {', '.join(f'lora_{p}' for p in parts)}")
        elif len(file.entries[a].shape) != 2 or len(file.entries[b].shape) != 2:
            wrong.append(f"{module}: expected two matrices, found shapes {file.entries[a].shape} and "
                         f"{file.entries[b].shape}")
        elif file.entries[a].shape[0] != file.entries[b].shape[1]:
            wrong.append(f"{module}: expected the rank of A in B, found shapes {file.entries[a].shape} and "
                         f"{file.entries[b].shape}")
        elif file.entries[a].shape[0] != config.rank_of(module):
            wrong.append(f"{module}: {config_path.name} says r = {config.rank_of(module)}, found rank "
                         f"{file.entries[a].shape[0]}")
        else:
            factors[module] = Factors(file[a], file[b], config.scaling_of(module))
    if wrong:
        raise UserError(f"{weights}:\n  {shorten(wrong, 20, chr(10) + '  ')}")
    embeddings = frozenset(m for m, parts in halves.items() if "lora_embedding_" in parts["A"])
    # For an adapted embedding PEFT saves the base's weight too.
    copies = {f"{PREFIX}{module}{of_base}.weight" for module in embeddings for of_base in ("", ".base_layer")}
    others = {name: shape for name, shape in others.items() if name not in copies}
    size = sum(path.stat().st_size for path in {config_path, weights})
    return AdapterFolder(source.folder, dict(settings), factors, embeddings, others, size)


def write_adapter_folder(folder: Path, settings: Mapping[str, Any], factors: Mapping[str, Factors],
                         embeddings: frozenset[str] = frozenset(), more: Mapping[str, Any] | None = None) -> None:
    """Write a new folder with the two files, float32.

    Args:
        settings: adapter_config.json.
        embeddings: which of the modules are embeddings.
        more: other JSON files to write, by name.

    Raises:
        UserError: an array is not finite, or the folder cannot be written; it then does not exist.
    """
    write_adapter_arrays(folder, settings, peft_arrays(factors, embeddings, {}), more)


def write_low_rank(folder: Path, updates: LowRank, layers: int | None = None) -> None:
    """The same for updates with their settings.

    Args:
        layers: see `peft_settings_of`.
    """
    arrays = peft_arrays(updates.factors, updates.embeddings, updates.magnitudes)
    write_adapter_arrays(folder, peft_settings_of(updates, layers), arrays)


def write_adapter_arrays(folder: Path, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray],
                         more: Mapping[str, Any] | None = None) -> None:
    """The same for arrays with PEFT's names."""
    with atomic_folder(folder) as stage:
        with atomic_write(stage / WEIGHTS_FILE, "wb") as stream:
            shapes = {name: arrays[name].shape for name in sorted(arrays)}
            write_safetensors(stream, arrays, shapes, {"format": "pt"}, stage / WEIGHTS_FILE)
        for name, value in (more or {}).items():
            write_json(stage / name, value)
        write_json(stage / CONFIG_FILE, dict(settings))


def _config(settings: Mapping[str, Any]) -> LoraConfig:
    """The settings that determine ranks and scalings."""
    return LoraConfig(r=settings.get("r", 8), alpha=float(settings.get("lora_alpha", 8)),
                      use_rslora=bool(settings.get("use_rslora")), rank_pattern=settings.get("rank_pattern") or {},
                      alpha_pattern=settings.get("alpha_pattern") or {})


def _halves(file: TensorFile) -> tuple[dict[str, dict[str, str]], dict[str, tuple[int, ...]]]:
    """Module → "A" or "B" → name of the tensor; and the shapes of all other tensors."""
    halves: dict[str, dict[str, str]] = {}
    others = {}
    for name, entry in file.entries.items():
        match = _PART.fullmatch(name)
        if match is None:
            others[name] = entry.shape
            continue
        if len(entry.shape) != 2:
            raise UserError(f"{file.path}: {name}: expected a matrix, found shape {tuple(entry.shape)}. Adapters of "
                            "convolutions are read by jittor_lora.load_adapter alone.")
        module, part = match.group(1), match.group(2).replace(".weight", "")[-1]
        if part in halves.setdefault(module, {}):
            raise UserError(f"{file.path}: {show(module)}: adapted both as a linear layer and as an embedding.")
        halves[module][part] = name
    return halves, others
