"""Adapters as files: found, measured, compared, combined, converted; without a base model, and without Jittor."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any, Mapping, NamedTuple, Optional, Sequence

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_check import show
from jittor_lora.formats.adapter_files import RECORD_FILE, may_be_adapter
from jittor_lora.formats.adapter_folder import (
    AdapterFolder,
    read_adapter_folder,
    write_adapter_arrays,
    write_adapter_folder,
    write_low_rank,
)
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.base_record import read_record
from jittor_lora.formats.hugging_face import shorten
from jittor_lora.formats.loralib_file import read_loralib
from jittor_lora.formats.loralib_writer import Written, write_loralib
from jittor_lora.formats.low_rank import LowRank, place, plain_settings
from jittor_lora.formats.prompting import read_prompting, write_prompting
from jittor_lora.formats.reference_npz import read_reference_npz, write_reference_npz
from jittor_lora.lora.combination import Combination
from jittor_lora.lora.combine import Factors, combine
from jittor_lora.lora.spectrum import Difference, Spectrum, difference, spectrum
from jittor_lora.model.config import ModelConfig

DEEPEST = 8  # levels of folders below the one searched
_NOTHING = (None, False, [], {}, "", "none")  # values of an unused setting
# Settings with which adapters do more than add low-rank updates, so that a weighted sum is not what they compute.
_NOT_COMBINED = (
    "use_dora", "bias", "modules_to_save", "trainable_token_indices", "layer_replication", "lora_bias",
    "target_parameters", "use_qalora", "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config",
)
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_NOT_COMPARED = ("peft_version", "inference_mode")


class Found(NamedTuple):
    """A folder with an adapter, or with files that should be one: then `problem` says what is wrong."""

    folder: Path
    adapter: Optional[AdapterFolder]
    problem: Optional[str]


class ModuleInfo(NamedTuple):
    """One adapted module; `layer` is None outside the blocks."""

    module: str
    layer: Optional[int]
    kind: str
    rank: int
    scaling: float
    spectrum: Spectrum


class ModuleDifference(NamedTuple):
    """One module of two adapters."""

    module: str
    difference: Difference


class Comparison(NamedTuple):
    """Two adapters.

    Attributes:
        settings: name, value in the first, value in the second.
        modules: those in both.
        only: modules only in the first, and only in the second.
    """

    settings: list[tuple[str, Any, Any]]
    modules: list[ModuleDifference]
    only: tuple[list[str], list[str]]


def find_adapters(folder: Path) -> list[Found]:
    """The adapters in a folder and below it, sorted by path; links are not followed.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'expected a folder; found a file' if folder.exists() else 'no such folder'}.")
    found = []
    for path, folders, _ in os.walk(folder):
        folders.sort()
        if len(Path(path).relative_to(folder).parts) >= DEEPEST:
            folders.clear()
        if may_be_adapter(Path(path)):
            try:
                found.append(Found(Path(path), read_adapter_folder(Path(path), numbers=False), None))
            except UserError as error:
                found.append(Found(Path(path), None, str(error)))
    return sorted(found, key=lambda one: one.folder)


def measure(adapter: AdapterFolder) -> list[ModuleInfo]:
    """Every adapted module, block by block."""
    rows = []
    for module, factors in adapter.factors.items():
        layer, kind = place(module)
        rows.append(ModuleInfo(module, layer, kind, len(factors.a), factors.scaling, spectrum(factors)))
    return sorted(rows, key=lambda row: _in_order(row.module))


def in_use(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings in use, without PEFT's version and the like."""
    return [(name, value) for name, value in settings.items()
            if value not in _NOTHING and name not in (*_NOT_COMPARED, "base_model_name_or_path", "peft_type")]


def compare(first: AdapterFolder, second: AdapterFolder) -> Comparison:
    """
    Raises:
        UserError: a module has different shapes, so the adapters are for different bases; all are listed.
    """
    both = [module for module in first.factors if module in second.factors]
    wrong = [f"{module}: {_shape(first.factors[module])} against {_shape(second.factors[module])}" for module in both
             if _shape(first.factors[module]) != _shape(second.factors[module])]
    if wrong:
        raise UserError(f"{first.folder} and {second.folder} are adapters for different bases (out, in):\n  "
                        + shorten(wrong, 20, "\n  "))
    names = sorted((first.settings.keys() | second.settings.keys()) - set(_NOT_COMPARED))
    settings = []
    for name in names:
        values = [adapter.settings.get(name) for adapter in (first, second)]
        if _comparable(values[0]) != _comparable(values[1]):
            settings.append((name, *values))
    modules = [ModuleDifference(m, difference(first.factors[m], second.factors[m]))
               for m in sorted(both, key=_in_order)]
    only = tuple([m for m in sorted(one.factors, key=_in_order) if m not in other.factors]
                 for one, other in ((first, second), (second, first)))
    return Comparison(settings, modules, only)


def combine_folders(folders: Sequence[Path], weights: Sequence[float], how: Combination,
                    output: Path) -> tuple[AdapterFolder, list[str]]:
    """Write the combination of adapters as a new adapter.

    Returns: the new adapter, and notes for the user.

    Raises:
        UserError: adapters that do not fit together, or have more than low-rank updates; all reasons are listed.
    """
    adapters = [read_adapter_folder(folder) for folder in folders]
    _check_combinable(adapters)
    try:
        combined = combine([adapter.factors for adapter in adapters], weights, how)
    except UserError as error:
        raise UserError(f"{', '.join(map(str, folders))}: {error}") from error
    bases = list(dict.fromkeys(str(a.settings.get("base_model_name_or_path")) for a in adapters))
    records = [read_record(folder) for folder in folders]
    alike = len({record and record.fingerprint for record in records}) == 1
    notes = []
    if not all(records) and len(bases) > 1:
        notes.append(f"the adapters name different bases ({', '.join(bases)}); the new one names {bases[0]}. A "
                     "combination makes sense only if they are the same model.")
    elif all(records) and not alike:
        notes.append(f"the adapters were trained on bases with different weights ({', '.join(bases)}); the new one "
                     f"names {bases[0]}. A combination makes sense only if they are the same model.")
    embeddings = frozenset.union(*(adapter.embeddings for adapter in adapters))
    more = {RECORD_FILE: asdict(records[0].moved(folders[0], output))} if records[0] and alike else {}
    write_adapter_folder(output, _combined_settings(adapters, combined), combined, embeddings, more)
    promptings = [read_prompting(folder) for folder in folders]
    if None in promptings:
        alike = not any(promptings)
    else:
        smoothing = mean(prompting.label_smoothing for prompting in promptings)
        promptings = [replace(prompting, label_smoothing=smoothing) for prompting in promptings]
        alike = all(prompting == promptings[0] for prompting in promptings)
    if alike:
        write_prompting(output, promptings[0])
    else:
        notes.append("the adapters were trained with different templates or special tokens, which the new one does not "
                     "record; give them as flags.")
    return read_adapter_folder(output), notes


def npz_to_folder(source: Path, output: Path, base: str, alpha: float) -> AdapterFolder:
    """Write an .npz of GPT2_LoRA_Jittor as a folder in PEFT's layout; see `formats.reference_npz`.

    Args:
        base: the name of the base model, for `base_model_name_or_path`.
        alpha: of the LoRAConfig that the file was trained with.
    """
    factors = read_reference_npz(source, alpha)
    ranks = {place(module)[1]: len(pair.a) for module, pair in factors.items()}
    rank = next((r for kind, r in ranks.items() if kind != "attn.c_attn"), ranks.get("attn.c_attn", 0) // 3)
    write_low_rank(output, LowRank(factors, rank, alpha, base=base))
    return read_adapter_folder(output)


def loralib_to_folder(source: Path, output: Path, base: str, alpha: float,
                      enabled: str | None) -> tuple[AdapterFolder, list[str]]:
    """Write the weights of loralib as a folder in PEFT's layout; see `formats.loralib_file`.

    Args:
        base: the name of the base model, for `base_model_name_or_path`.
        alpha, enabled: see `read_loralib`.

    Returns: the folder, and sentences on how the file was read.
    """
    found = read_loralib(source, alpha, enabled)
    write_low_rank(output, LowRank(found.factors, found.rank, alpha, base=base))
    return read_adapter_folder(output), found.notes


def convert_other(source: AdapterSource, output: Path, name: str | None, base: ModelConfig | None) -> AdapterFolder:
    """Write an adapter of another program's format as a folder in PEFT's layout.

    Args:
        name: of the base model; by default the one that the adapter names.
        base: its sizes, which some formats need.

    Raises:
        UserError: as `AdapterSource.contents`.
    """
    settings, file = source.contents(base)
    write_adapter_arrays(output, {**settings, "base_model_name_or_path": name or settings["base_model_name_or_path"]},
                         file)
    return read_adapter_folder(output)


def folder_to_npz(source: Path, output: Path) -> tuple[int, float]:
    """Write an adapter for GPT-2 as an .npz of GPT2_LoRA_Jittor.

    Returns: r and alpha for that project's LoRAConfig.

    Raises:
        UserError: the adapter has more than low-rank updates to GPT-2's projections.
    """
    adapter = read_adapter_folder(source)
    _check_combinable([adapter])
    return write_reference_npz(output, adapter.factors)


def folder_to_loralib(source: Path, output: Path, enabled: str | None) -> Written:
    """Write an adapter as loralib's `lora_state_dict`; see `formats.loralib_writer`.

    Raises:
        UserError: the adapter has more than low-rank updates, or `enabled` leaves some of them out.
    """
    adapter = read_adapter_folder(source)
    _check_combinable([adapter])
    return write_loralib(output, adapter.factors, enabled)


def _check_combinable(adapters: Sequence[AdapterFolder]) -> None:
    wrong = []
    for adapter in adapters:
        used = [f"{name}: {show(adapter.settings[name])}" for name in _NOT_COMBINED
                if adapter.settings.get(name) not in _NOTHING]
        start = adapter.settings.get("init_lora_weights")
        if start not in _PLAIN_STARTS:
            used.append(f"init_lora_weights: {show(start)}, whose adapter belongs to a modified base")
        if not used and adapter.others:
            used.append(f"tensors outside low-rank updates: {shorten(adapter.others, 3)}")
        wrong += [f"{adapter.folder}: {one}" for one in used]
        if not adapter.factors:
            wrong.append(f"{adapter.folder}: no low-rank update")
    if wrong:
        raise UserError("Only plain low-rank updates can be extracted from an adapter; found\n  " + "\n  ".join(wrong))


def _combined_settings(adapters: Sequence[AdapterFolder], combined: dict[str, Factors]) -> dict[str, Any]:
    """Settings of the first adapter, with the modules of all; the scaling is 1."""
    first = adapters[0].settings
    rank = max(len(pair.a) for pair in combined.values())
    others = {module: len(pair.a) for module, pair in combined.items() if len(pair.a) != rank}
    return {
        **plain_settings(), "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": _targets(adapters, combined),
        **{name: first[name] for name in ("task_type", "base_model_name_or_path", "revision", "fan_in_fan_out",
                                          "lora_dropout") if name in first},
    }


def _targets(adapters: Sequence[AdapterFolder], combined: dict[str, Factors]) -> list[str] | str:
    """
    Raises:
        UserError: some name modules, others have a regular expression; PEFT refuses that too.
    """
    targets = [adapter.settings["target_modules"] for adapter in adapters]
    if len({type(one) for one in targets}) > 1:
        raise UserError("target_modules: expected names in all adapters or a regular expression in all, found "
                        + " and ".join(f"{show(t)} in {a.folder}" for t, a in zip(targets, adapters)) + ".")
    chosen = ("layers_to_transform", "layers_pattern", "exclude_modules")
    if any(adapter.settings.get(name) not in _NOTHING for adapter in adapters for name in chosen):
        return sorted(combined)
    if isinstance(targets[0], str):
        return targets[0] if len(set(targets)) == 1 else "|".join(f"({one})" for one in targets)
    return sorted({name for one in targets for name in one})


def _shape(factors: Factors) -> tuple[int, int]:
    return len(factors.b), factors.a.shape[1]


def _in_order(module: str) -> tuple:
    layer, kind = place(module)
    return layer is None, layer or 0, kind


def _comparable(value: Any) -> Any:
    """Equal for values that mean the same: names in any order, and everything that means "not used"."""
    if value in _NOTHING:
        return None
    return sorted(map(str, value)) if isinstance(value, list) else value
