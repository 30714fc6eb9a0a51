"""Adapters in the layout of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write, write_json, written_together
from jittor_lora.files.patterns import wrong_amount
from jittor_lora.formats.adapter_check import PREFIX, check_effort, open_weights, read_config
from jittor_lora.formats.adapter_files import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from jittor_lora.formats.base_record import BaseRecord
from jittor_lora.formats.peft_config import peft_settings, read_adapter_config
from jittor_lora.formats.safetensors_file import write_safetensors
from jittor_lora.lora.adapted import Adapted, TrainableCopy
from jittor_lora.lora.config import FAST_PISSA, LoraConfig
from jittor_lora.lora.inject import DEFAULT, Adapter, check_fit, inject, listing, trained_shapes
from jittor_lora.lora.layer import Update
from jittor_lora.lora.targets import idle_targets, is_saved
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import leaves

# Parts of a module that a file may hold, and how many dimensions they have.
DIMENSIONS = {"lora_A": (2,), "lora_B": (2,), "lora_embedding_A": (2,), "lora_embedding_B": (2,),
              "lora_magnitude_vector": (1,), "weight": (1, 2), "bias": (1,)}

_MATRIX = re.compile(r"(.+\.lora_[AB])\.weight")
_OTHER_LORA = re.compile(r"(.+\.(?:lora_embedding_[AB]|lora_magnitude_vector))(?:\.weight)?")


def save_adapter(folder: Path, adapter: Adapter, base: str | BaseRecord, family: str, convert: bool = True) -> None:
    """Write the adapter as PEFT does, float32, each file atomically, the weights last.

    Args:
        base: the name or folder of the base model, for `base_model_name_or_path`; of a record, which is written too.
        family: "gpt2" or "llama"; GPT-2's Conv1D weights are what `fan_in_fan_out` is about.
        convert: what started with PiSSA or OLoRA is written as a plain adapter of twice the rank: with A₀ and B₀ of the
            start, B A - B₀ A₀ is the product of [B, -B₀] and [A; A₀]. Otherwise A and B alone are written, and whoever
            reads them computes A₀ and B₀ again from the base's weights.

    Raises:
        UserError: PEFT could not compute this start again; or arrays hold numbers that are not finite; the files are
            then as they were.
    """
    config, arrays = adapter.config, _arrays(adapter)
    if config.changes_base:
        if convert:
            config, arrays = _converted(config, arrays, adapter.initial())
        elif config.init != "pissa" and (config.init != "olora" or family == "gpt2"):
            drawn = FAST_PISSA.fullmatch(config.init)
            why = "draws at random" if drawn else "takes GPT-2's weights the wrong way round"
            raise UserError(f"{folder}: PEFT's {config.init} {why}, so that it cannot be computed again from the base. "
                            "Save the adapter converted.")
    updated = {name for name, version in adapter.versions.items() if not isinstance(version, TrainableCopy)}
    keyed = {_peft_key(name, updated): array for name, array in arrays.items()}
    with written_together(folder, CONFIG_FILE) as stage:
        with atomic_write(stage / WEIGHTS_FILE, "wb") as stream:
            shapes = {key: keyed[key].shape for key in sorted(keyed)}
            write_safetensors(stream, keyed, shapes, {"format": "pt"}, stage / WEIGHTS_FILE)
        if isinstance(base, BaseRecord):
            base.write(stage)
        else:
            (folder / RECORD_FILE).unlink(missing_ok=True)  # of an adapter that was here before
        write_json(stage / CONFIG_FILE, peft_settings(config, getattr(base, "name", base), family))


def load_adapter(folder: Path, model: CausalLM, name: str = DEFAULT) -> Adapter:
    """Put the adapter of `folder` into `model`, under this name.

    Raises:
        UserError: files missing, damaged or with settings that are not supported; or an adapter of another base,
            with the list of what does not fit. The model is then as it was.
    """
    folder = Path(folder)
    config = read_adapter_config(folder / CONFIG_FILE)
    arrays = read_adapter_weights(folder / WEIGHTS_FILE)
    modules = sorted({name.rpartition(".")[0] for name in arrays} | {leaf.name for leaf in leaves(model)})
    check_effort(folder / CONFIG_FILE, read_config(folder / CONFIG_FILE), modules)
    _check_ranks(folder, config, arrays)
    written, config = config, _by_tensors(config, arrays, modules)
    try:
        _refuse_olora_of_gpt2(config, model)
        modules = {leaf.name: leaf.module.base if isinstance(leaf.module, Adapted) else leaf.module
                   for leaf in leaves(model)}
        arrays = _without_base(_turned(arrays, modules), config, modules)
        config = _fitted(config, arrays, model)
        check_fit(trained_shapes(model, config), arrays)  # before anything of that size is made
        adapter = inject(model, config, name=name)
        adapter.load(arrays)
        if isinstance(written.target_modules, str):
            adapter.config = replace(config, target_modules=written.target_modules,
                                     exclude_modules=written.exclude_modules)
    except UserError as error:
        base = read_config(folder / CONFIG_FILE).get("base_model_name_or_path")
        raise UserError(f"{folder}: {error}\nThe base that its {CONFIG_FILE} names: {base}") from error
    return adapter


def read_adapter_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays by our names ("<module>.lora_A", see `Adapter.parameters`), float32, each as it is stored.

    Raises:
        UserError: missing, damaged, or with keys that no LoRA adapter has; all are listed.
    """
    file, arrays, wrong = open_weights(path), {}, []
    for key in file:
        name = key[len(PREFIX):]
        match = _MATRIX.fullmatch(name) or _OTHER_LORA.fullmatch(name)
        if match:
            name = match.group(1)
        name = re.sub(r"\.base_layer\.bias$", ".bias", name)  # PEFT up to 0.6 had no base_layer
        shape, part = file.entries[key].shape, name.rsplit(".", 1)[-1]
        if len(shape) not in DIMENSIONS.get(part, ()) or (".lora_" in name and not match):
            wrong.append(f"{key}: expected a LoRA matrix, a magnitude, or a weight or bias, found shape {shape}")
        elif ".original_module." not in key:  # of a module that is saved whole; PEFT keeps it beside its copy
            arrays[name] = file[key]
    if wrong:
        raise UserError(f"{path}:\n  {listing(wrong)}")
    return arrays


def peft_name(name: str) -> str:
    """PEFT's key for "<module>.lora_A"."""
    return f"{PREFIX}{name}.weight"


def _peft_key(name: str, updated: set[str]) -> str:
    """PEFT's key for an array of `Adapter.parameters`; updated: modules with an update."""
    module, _, part = name.rpartition(".")
    if part in ("lora_A", "lora_B"):
        return peft_name(name)
    return f"{PREFIX}{module}.base_layer.bias" if part == "bias" and module in updated else PREFIX + name


def _arrays(adapter: Adapter) -> dict[str, np.ndarray]:
    """The trained arrays as files hold them."""
    arrays = {name: p.numpy() for name, p in adapter.parameters().items()}
    if adapter.config.qv_only:
        # PEFT knows no such setting; the rows that get no update are zeros, which say the same.
        arrays.update({f"{name}.lora_B": update.effective_b() for name, update in adapter.updates.items()
                       if isinstance(update, Update)})
    return _turned(arrays, {name: version.module for name, version in adapter.versions.items()
                            if isinstance(version, TrainableCopy)})


def _turned(arrays: Mapping[str, np.ndarray], modules: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights that checkpoints store as (in, out) the other way round, from here to a file and back."""
    turned = {f"{name}.weight" for name, module in modules.items() if getattr(module, "stored_transposed", False)}
    return {name: np.ascontiguousarray(a.T) if name in turned else a for name, a in arrays.items()}


def _converted(config: LoraConfig, arrays: dict[str, np.ndarray],
               initial: Mapping[str, np.ndarray]) -> tuple[LoraConfig, dict[str, np.ndarray]]:
    """A plain adapter of twice the rank that says the same, see `save_adapter`."""
    arrays = dict(arrays)
    for name, array in initial.items():
        a = name.endswith("lora_A")
        arrays[name] = np.concatenate([arrays[name], array if a else -array], 0 if a else 1)
    factor = math.sqrt(2.0) if config.use_rslora else 2.0  # of alpha, which keeps the scaling
    return replace(config, r=2 * config.r, alpha=config.alpha * factor, init="kaiming",
                   rank_pattern={key: 2 * rank for key, rank in config.rank_pattern.items()},
                   alpha_pattern={key: factor * alpha for key, alpha in config.alpha_pattern.items()}), arrays


def _check_ranks(folder: Path, config: LoraConfig, arrays: Mapping[str, np.ndarray]) -> None:
    found = {name.rpartition(".")[0]: array.shape[0] for name, array in arrays.items()
             if name.endswith(("lora_A", "lora_embedding_A"))}
    wrong = {module: rank for module, rank in found.items() if rank != config.rank_of(module)}
    if wrong and not config.rank_pattern:
        raise UserError(f"{folder}: {CONFIG_FILE} says r = {config.r}, but {WEIGHTS_FILE} holds rank "
                        f"{', '.join(map(str, sorted(set(found.values()))))}. The two files do not belong together.")
    if wrong:
        lines = [f"{module}: {CONFIG_FILE} says rank {config.rank_of(module)}, {WEIGHTS_FILE} holds {rank}"
                 for module, rank in wrong.items()]
        raise UserError(f"{folder}: the two files do not belong together:\n  {listing(lines)}")


def _refuse_olora_of_gpt2(config: LoraConfig, model: CausalLM) -> None:
    if config.init == "olora" and model.config.family == "gpt2":
        raise UserError("init_lora_weights: 'olora' is not supported for GPT-2: PEFT takes its weights the wrong way "
                        "round there, so that the adapter belongs to no base.")


def _without_base(arrays: Mapping[str, np.ndarray], config: LoraConfig,
                  modules: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays without copies of the base's own, which PEFT writes for embeddings that are adapted.

    Raises:
        UserError: such a copy differs from this base.
    """
    kept, wrong = {}, []
    for name, array in arrays.items():
        module = re.sub(r"\.base_layer$", "", name.rpartition(".")[0])
        if not name.endswith(".weight") or module not in modules or is_saved(module, config.modules_to_save):
            kept[name] = array
        elif not np.array_equal(modules[module].weight.numpy(), array):
            wrong.append(f"{name}: the file has the base's weight, shape {array.shape}, and it is not that of this "
                         f"base, shape {tuple(modules[module].weight.shape)}")
    if wrong:
        raise UserError("The adapter does not fit the model:\n  " + listing(wrong))
    return kept


def _by_tensors(config: LoraConfig, arrays: Mapping[str, np.ndarray], modules: Sequence[str]) -> LoraConfig:
    """The settings, with the modules that the file has tensors of where an expression may take long to match."""
    expressions = filter(None, (config.target_modules, config.exclude_modules))
    if not wrong_amount([value for value in expressions if isinstance(value, str)], modules, at_parts=False):
        return config
    return replace(config, target_modules=tuple(_adapted(arrays)), exclude_modules=())


def _adapted(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return list({name.rpartition(".")[0]: None for name in arrays if ".lora_" in name})


def _fitted(config: LoraConfig, arrays: Mapping[str, np.ndarray], model: CausalLM) -> LoraConfig:
    """The settings without names that match nothing: PEFT needs one to match, and keeps the others."""
    adapted = _adapted(arrays)
    names = [leaf.name for leaf in leaves(model)]
    if not isinstance(config.target_modules, str):
        idle = idle_targets(adapted, config.target_modules)
        used = tuple(target for target in config.target_modules if target not in idle)
        config = replace(config, target_modules=used or config.target_modules)
    saved = tuple(text for text in config.modules_to_save if any(is_saved(name, [text]) for name in names))
    biases = any(getattr(leaf.module, "bias", None) is not None for leaf in leaves(model))
    return replace(config, modules_to_save=saved, bias=config.bias if biases else "none")
