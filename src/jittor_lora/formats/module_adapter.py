"""Adapters of any Jittor module in PEFT's layout: in a folder, or as a dict of arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, Union

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.atomic import write_json, written_together
from jittor_lora.formats import peft
from jittor_lora.formats.adapter_check import COUNTER, PREFIX, check_effort, open_weights, read_config
from jittor_lora.formats.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from jittor_lora.formats.peft_config import config_of, peft_settings
from jittor_lora.lora.adapted import TrainableCopy, buffers_of, parameters_of
from jittor_lora.lora.adapter import Adapter, set_arrays
from jittor_lora.lora.inject import DEFAULT, adapters_of
from jittor_lora.lora.selection import base_modules
from jittor_lora.system.runtime import jt

Folder = Union[str, "os.PathLike[str]"]


def save_adapter(module: jt.Module, folder: Folder, name: str = DEFAULT) -> None:
    """Write one adapter of a module as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, float32; both
    files are replaced or none. One that PiSSA or OLoRA initialised is written as a plain one of twice the rank.

    Raises:
        UserError: no such adapter, an array that is not finite, or a folder that cannot be written.
    """
    folder = Path(folder)
    adapter = _adapter(module, name)
    config, arrays = peft.as_plain(adapter)
    settings = {**peft_settings(config, "", ""), "base_model_name_or_path": None, "task_type": None}
    with written_together(folder, CONFIG_FILE) as stage:
        peft.write_weights(stage, {**_keyed(arrays, adapter), **_counters(adapter)})
        write_json(stage / CONFIG_FILE, settings)


def load_adapter(module: jt.Module, folder: Folder, name: str = DEFAULT) -> Adapter:
    """Put the adapter of a folder in PEFT's layout into a module, under this name. The files are untrusted.

    Raises:
        UserError: files are missing, damaged or have unsupported settings; the name is taken; or the adapter is for
            another module, with the list of what does not fit. The module is then unchanged.
    """
    path = Path(folder) / CONFIG_FILE
    settings = read_config(path)
    config = config_of(path, settings)
    bases = base_modules(module)
    own = {f"{base}.{part}" for base, layer in bases.items() for part in (*parameters_of(layer), *buffers_of(layer))}
    arrays = peft.adapter_arrays(open_weights(Path(folder) / WEIGHTS_FILE), own)
    check_effort(path, settings, sorted({name.rpartition(".")[0] for name in arrays} | bases.keys()))
    peft.check_ranks(Path(folder), config, {name: array for name, array in arrays.items()
                                            if name.rpartition(".")[0] in bases})
    try:
        return adapters_of(module).add(peft.fitted(config, arrays, bases), name, arrays=arrays)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def adapter_state_dict(module: jt.Module, name: str = DEFAULT) -> dict[str, np.ndarray]:
    """The arrays of one adapter, copies, by the names in PEFT's file.

    Raises:
        UserError: no such adapter.
    """
    adapter = _adapter(module, name)
    return _keyed(peft.trained(adapter), adapter)


def load_adapter_state_dict(module: jt.Module, state: Mapping[str, np.ndarray], name: str = DEFAULT) -> None:
    """Set the arrays of one adapter, as `adapter_state_dict` returned them.

    Raises:
        UserError: no such adapter; or an array is missing, unexpected or misshapen; all are listed, and nothing is set.
    """
    adapter = _adapter(module, name)
    named = {key: own for own, key in peft.keys(adapter.arrays(), adapter).items()}
    unknown = [f"{key}: no such array in this adapter" for key in state if key not in named]
    if unknown:
        raise UserError("The adapter does not fit the module:\n  " + "\n  ".join(some_of_each(unknown)))
    set_arrays(adapter.arrays(), {named[key]: np.asarray(array) for key, array in state.items()})


def _keyed(arrays: Mapping[str, np.ndarray], adapter: Adapter) -> dict[str, np.ndarray]:
    """The arrays by PEFT's names."""
    return {key: arrays[name] for name, key in peft.keys(arrays, adapter).items()}


def _counters(adapter: Adapter) -> dict[str, np.ndarray]:
    """The counters of steps that PyTorch's BatchNorm has, and PEFT asks for; Jittor's has none."""
    return {f"{PREFIX}{name}{COUNTER}": np.zeros((), np.float32) for name, version in adapter.versions.items()
            if isinstance(version, TrainableCopy) and "running_mean" in version.state()}


def _adapter(module: jt.Module, name: str) -> Adapter:
    return adapters_of(module).named(name)
