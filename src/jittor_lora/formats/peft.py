"""Adapters in the layout of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Container, Iterable, Mapping, Sequence

import numpy as np

from jittor_lora.data.prompting import Prompting
from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.atomic import atomic_write, write_json, written_together
from jittor_lora.files.patterns import wrong_amount
from jittor_lora.formats.adapter_check import PREFIX, check_effort
from jittor_lora.formats.adapter_files import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from jittor_lora.formats.adapter_source import AdapterSource, open_adapter
from jittor_lora.formats.base_record import BaseRecord
from jittor_lora.formats.peft_config import config_of, peft_settings, setting_notes
from jittor_lora.formats.peft_extras import INDICES, TOKEN_ROWS, resolve
from jittor_lora.formats.prompting import write_prompting
from jittor_lora.formats.safetensors_file import write_safetensors
from jittor_lora.formats.tensor_file import TensorFile
from jittor_lora.lora.adapted import TrainableCopy
from jittor_lora.lora.adapter import Adapter
from jittor_lora.lora.attention import OUT, AttentionUpdate
from jittor_lora.lora.config import FAST_PISSA, LoraConfig
from jittor_lora.lora.inject import DEFAULT, inject
from jittor_lora.lora.layer import Update
from jittor_lora.lora.selection import base_modules
from jittor_lora.lora.targets import idle_targets, is_saved
from jittor_lora.lora.token_rows import TokenRows
from jittor_lora.model.causal_lm import CausalLM

# Parts of a module that a file may hold, and how many dimensions they have.
DIMENSIONS = {"lora_A": (2,), "lora_B": (2,), "lora_embedding_A": (2,), "lora_embedding_B": (2,),
              "lora_magnitude_vector": (1,), "lora_B_bias": (1,), TOKEN_ROWS: (2,),
              "weight": (1, 2), "bias": (1,)}
# And how many in a convolution
KERNEL_DIMENSIONS = dict.fromkeys(("lora_A", "lora_B", "lora_magnitude_vector", "weight"), (3, 4, 5))

_MATRIX = re.compile(r"(.+\.lora_[AB])\.weight")
_OTHER_LORA = re.compile(r"(.+\.(?:lora_embedding_[AB]|lora_magnitude_vector))(?:\.weight)?")
# Parts of names that PEFT leaves in those of embeddings which it saves whole
_WRAPPED = re.compile(r"\.token_adapter(?=\.)|\.modules_to_save(?:\.default)?(?=\.)|\.base_layer(?=\.out_proj\.)")
_B_BIAS = ".lora_B.bias"  # PEFT's key for ".lora_B_bias"


def save_adapter(folder: Path, adapter: Adapter, base: str | BaseRecord, family: str, convert: bool = True,
                 prompting: Prompting | None = None) -> None:
    """Write the adapter as PEFT does, in float32; either all files are replaced or none.

    Args:
        base: name or folder of the base model, for `base_model_name_or_path`; a record is written as a file too.
        family: "gpt2" or "llama"; `fan_in_fan_out` says that GPT-2's Conv1D weights are transposed.
        convert: write an adapter initialised by PiSSA or OLoRA as a plain one of twice the rank: with the initial A₀
            and B₀, B A - B₀ A₀ is the product of [B, -B₀] and [A; A₀]. Otherwise only A and B are written, and whoever
            loads them computes A₀ and B₀ again from the base's weights.
        prompting: how its training put examples into texts, if known; written beside PEFT's files.

    Raises:
        UserError: PEFT could not compute this initialisation again, or an array is not finite; the files are then
            unchanged.
    """
    if adapter.config.changes_base and not convert:
        config, arrays = adapter.config, trained(adapter)
        if config.init != "pissa" and (config.init != "olora" or family == "gpt2"):
            drawn = FAST_PISSA.fullmatch(config.init)
            why = "is random" if drawn else "transposes GPT-2's weights"
            raise UserError(f"{folder}: PEFT's {config.init} {why}, so it cannot be computed again from the base. "
                            "Save the adapter converted.")
    else:
        config, arrays = as_plain(adapter)
    keyed = {key: arrays[name] for name, key in keys(arrays, adapter).items()}
    rows = {name: version for name, version in adapter.versions.items()
            if isinstance(version, TokenRows) and not version.follows}
    keyed.update({f"{PREFIX}{name}.token_adapter.{TOKEN_ROWS}": version.rows for name, version in rows.items()})
    settings = peft_settings(config, getattr(base, "name", base), family)
    if rows:
        settings[INDICES] = {name: version.tokens.tolist() for name, version in rows.items()}
    with written_together(folder, CONFIG_FILE) as stage:
        write_weights(stage, keyed)
        if isinstance(base, BaseRecord):
            base.write(stage)
        else:
            (folder / RECORD_FILE).unlink(missing_ok=True)  # of an adapter saved here before
        write_prompting(stage, prompting, beside=folder)
        write_json(stage / CONFIG_FILE, settings)


def write_weights(folder: Path, keyed: Mapping[str, np.ndarray]) -> None:
    """Write PEFT's file of arrays by its names."""
    with atomic_write(folder / WEIGHTS_FILE, "wb") as stream:
        shapes = {key: keyed[key].shape for key in sorted(keyed)}
        write_safetensors(stream, keyed, shapes, {"format": "pt"}, folder / WEIGHTS_FILE)


def load_adapter(source: Path | AdapterSource, model: CausalLM, name: str = DEFAULT) -> Adapter:
    """Put the adapter of a folder into `model`, under this name.

    Raises:
        UserError: files are missing, damaged or have unsupported settings; or the adapter is for another base, with
            the list of what does not fit. The model is then unchanged.
    """
    source = open_adapter(source)
    folder, path = source.folder, source.config_path
    settings, file = source.contents(model.config)
    written = config = config_of(path, settings)
    arrays = adapter_arrays(file)
    notes = [f"{path}: {note}" for note in setting_notes(settings)]
    bases = base_modules(model)
    modules = sorted({name.rpartition(".")[0] for name in arrays} | bases.keys())
    check_effort(path, settings, modules)
    check_ranks(folder, config, arrays)
    config = _by_tensors(config, arrays, modules)
    try:
        _refuse_olora_of_gpt2(config, model)
        found = resolve(config, settings, _transposed(arrays, bases), bases, model.config.tied_head)
        as_written = found.config.target_modules == config.target_modules
        config = fitted(found.config, found.arrays, bases)
        adapter = inject(model, config, name=name, arrays=found.arrays, token_rows=found.token_rows)
        if isinstance(written.target_modules, str) and as_written:
            adapter.config = replace(adapter.config, target_modules=written.target_modules,
                                     exclude_modules=written.exclude_modules)
    except UserError as error:
        base = settings.get("base_model_name_or_path")
        raise UserError(f"{folder}: {error}\nThe base named in its {path.name}: {base}") from error
    for note in (*notes, *(f"{folder}: {note}" for note in found.notes)):
        print(note, file=sys.stderr)
    return adapter


def adapter_arrays(file: TensorFile, own: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays by the names of `Adapter.parameters` ("<module>.lora_A"), float32, as an adapter's file has them.

    Args:
        own: of a base that is not one of our networks, names of its arrays, which may be saved whole. It may have
            convolutions.

    Raises:
        UserError: the file has keys that no LoRA adapter has; all are listed.
    """
    arrays, wrong = {}, []
    for key in file:
        name = key[len(PREFIX):]
        match = _MATRIX.fullmatch(name) or _OTHER_LORA.fullmatch(name)
        if match:
            name = match.group(1)
        name = _WRAPPED.sub("", name)
        name = re.sub(r"\.base_layer\.bias$", ".bias", name)  # PEFT up to 0.6 had no base_layer
        of_b = name.endswith(_B_BIAS)
        if of_b:
            name = f"{name[: -len(_B_BIAS)]}.lora_B_bias"
        shape, part = file.entries[key].shape, name.rsplit(".", 1)[-1]
        fits = len(shape) in DIMENSIONS.get(part, ()) or own is not None and (
            name in own or len(shape) in KERNEL_DIMENSIONS.get(part, ()))
        if not fits or (".lora_" in name and not match and not of_b):
            wrong.append(f"{key}: expected a LoRA matrix, a magnitude, or a weight or bias, found shape {shape}")
        elif ".original_module." in key:  # the base's own, which PEFT keeps beside the copy that is trained
            continue
        elif name in arrays and not np.array_equal(arrays[name], file[key]):
            wrong.append(f"{key}: differs from another tensor of the file that is the same one")
        else:
            arrays[name] = file[key]
    if wrong:
        raise UserError(f"{file.path}:\n  {_listed(wrong)}")
    return arrays


def peft_name(name: str) -> str:
    """PEFT's key for "<module>.lora_A"."""
    return f"{PREFIX}{name}.weight"


def keys(names: Iterable[str], adapter: Adapter) -> dict[str, str]:
    """PEFT's keys for arrays of `Adapter.parameters`, by these names."""
    updated = adapter.updates
    found = {name: _peft_key(name, updated) for name in names}
    for module, update in updated.items():
        if isinstance(update, AttentionUpdate):  # within which PEFT wraps the output's projection
            own, wrapped = f"{module}.{OUT}", f"{module}.base_layer.{OUT}"
            found.update({name: key.replace(own, wrapped) for name, key in found.items() if name.startswith(f"{own}.")})
    return found


def _peft_key(name: str, updated: Container[str]) -> str:
    """PEFT's key for an array of `Adapter.parameters`; updated: the modules with a low-rank update."""
    module, _, part = name.rpartition(".")
    if part in ("lora_A", "lora_B"):
        return peft_name(name)
    if part == "lora_B_bias":
        return f"{PREFIX}{module}{_B_BIAS}"
    return f"{PREFIX}{module}.base_layer.bias" if part == "bias" and module in updated else PREFIX + name


def trained(adapter: Adapter) -> dict[str, np.ndarray]:
    """The trained arrays as files hold them, by the names of `Adapter.parameters`; copies."""
    arrays = {name: p.numpy().copy() for name, p in adapter.arrays().items()}
    if adapter.config.qv_only:
        # PEFT has no such setting; zeros in the rows that get no update say the same.
        arrays.update({f"{name}.lora_B": update.effective_b() for name, update in adapter.updates.items()
                       if isinstance(update, Update)})
    return _transposed(arrays, {name: version.module for name, version in adapter.versions.items()
                                if isinstance(version, TrainableCopy)})


def _transposed(arrays: Mapping[str, np.ndarray], modules: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays with those weights transposed that checkpoints store as (in, out); from memory to file or back."""
    names = {f"{name}.weight" for name, module in modules.items() if getattr(module, "stored_transposed", False)}
    return {name: np.ascontiguousarray(a.T) if name in names else a for name, a in arrays.items()}


def as_plain(adapter: Adapter) -> tuple[LoraConfig, dict[str, np.ndarray]]:
    """Settings and arrays as files hold them; of an adapter initialised by PiSSA or OLoRA those of an equivalent plain
    one of twice the rank, see `save_adapter`."""
    config, arrays = adapter.config, trained(adapter)
    if not config.changes_base:
        return config, arrays
    for name, array in adapter.initial().items():
        a = name.endswith("lora_A")
        arrays[name] = np.concatenate([arrays[name], array if a else -array], 0 if a else 1)
    factor = math.sqrt(2.0) if config.use_rslora else 2.0  # for alpha, so that the scaling stays the same
    return replace(config, r=2 * config.r, alpha=config.alpha * factor, init="kaiming",
                   rank_pattern={key: 2 * rank for key, rank in config.rank_pattern.items()},
                   alpha_pattern={key: factor * alpha for key, alpha in config.alpha_pattern.items()}), arrays


def check_ranks(folder: Path, config: LoraConfig, arrays: Mapping[str, np.ndarray]) -> None:
    """
    Raises:
        UserError: ranks that differ from those of the settings; all are listed.
    """
    found = {name.rpartition(".")[0]: array.shape[0] for name, array in arrays.items()
             if name.endswith(("lora_A", "lora_embedding_A"))}
    wrong = {module: rank for module, rank in found.items() if rank != config.rank_of(module)}
    if wrong and not config.rank_pattern:
        raise UserError(f"{folder}: {CONFIG_FILE} says r = {config.r}, but {WEIGHTS_FILE} holds rank "
                        f"{', '.join(map(str, sorted(set(found.values()))))}. The two files do not belong together.")
    if wrong:
        lines = [f"{module}: {CONFIG_FILE} says rank {config.rank_of(module)}, {WEIGHTS_FILE} holds {rank}"
                 for module, rank in wrong.items()]
        raise UserError(f"{folder}: the two files do not belong together:\n  {_listed(lines)}")


def _refuse_olora_of_gpt2(config: LoraConfig, model: CausalLM) -> None:
    if config.init == "olora" and model.config.family == "gpt2":
        raise UserError("init_lora_weights: 'olora' is not supported for GPT-2: PEFT transposes its weights there, so "
                        "the adapter fits no base.")


def _by_tensors(config: LoraConfig, arrays: Mapping[str, np.ndarray], modules: Sequence[str]) -> LoraConfig:
    """The settings, with the modules that the file has tensors of in place of an expression that is slow to match."""
    expressions = filter(None, (config.target_modules, config.exclude_modules))
    if not wrong_amount([value for value in expressions if isinstance(value, str)], modules, at_parts=False):
        return config
    return replace(config, target_modules=tuple(_adapted(arrays)), exclude_modules=())


def _adapted(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return list({name.rpartition(".")[0]: None for name in arrays if ".lora_" in name})


def fitted(config: LoraConfig, arrays: Mapping[str, np.ndarray], bases: Mapping[str, Any]) -> LoraConfig:
    """The settings without names that match nothing: PEFT requires only one of them to match, and keeps the others."""
    adapted = _adapted(arrays)
    if not isinstance(config.target_modules, str):
        idle = idle_targets(adapted, config.target_modules)
        used = tuple(target for target in config.target_modules if target not in idle)
        config = replace(config, target_modules=used or config.target_modules)
    saved = tuple(text for text in config.modules_to_save if any(is_saved(name, [text]) for name in bases))
    biases = any(getattr(module, "bias", None) is not None for module in bases.values())
    return replace(config, modules_to_save=saved, bias=config.bias if biases else "none")


def _listed(lines: Sequence[str]) -> str:
    return "\n  ".join(some_of_each(lines))
