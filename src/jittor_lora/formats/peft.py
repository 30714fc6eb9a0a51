"""Adapters in the layout of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files import atomic_write, write_json
from jittor_lora.formats.hugging_face import read_json
from jittor_lora.formats.safetensors_file import FLOAT_TYPES, SafetensorsFile, write_safetensors
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import Adapter, inject, listing
from jittor_lora.lora.targets import selects
from jittor_lora.model.causal_lm import CausalLM

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LARGEST_NUMBER = 1e9  # of alpha; far above any in use, and whole numbers of a JSON file may be beyond float

# Settings of PEFT's LoraConfig that change what an adapter computes, with the values that mean "not used".
# Whatever else stands in a file has no effect on the result, or only on training.
UNUSED = {
    "use_rslora": (False, None), "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layers_to_transform": (None, []),
    "layers_pattern": (None, []), "exclude_modules": (None, []), "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []), "lora_bias": (False, None), "target_parameters": (None, []),
    "megatron_config": (None,), "use_qalora": (False, None), "alora_invocation_tokens": (None, []),
    "use_bdlora": (False, None), "arrow_config": (None,), "kasa_config": (None,), "monteclora_config": (None,),
}
# Starts of A and B that leave the base model as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change it, and
# their adapters belong to the changed one.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def save_adapter(folder: Path, adapter: Adapter, base: str, family: str) -> None:
    """Write the adapter as PEFT does, float32, each file atomically, the weights last.

    Args:
        base: the name or folder of the base model, for `base_model_name_or_path`.
        family: "gpt2" or "llama"; GPT-2's Conv1D weights are what `fan_in_fan_out` is about.
    """
    c = adapter.config
    targets = c.target_modules if isinstance(c.target_modules, str) else sorted(c.target_modules)
    arrays = {peft_name(name): p.numpy() for name, p in adapter.parameters().items()}
    if c.qv_only:
        # PEFT knows no such setting; the rows that get no update are zeros, which say the same.
        arrays.update({peft_name(f"{name}.lora_B"): update.effective_b()
                       for name, update in adapter.updates.items()})
    write_json(folder / CONFIG_FILE, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": c.r,
        "lora_alpha": c.alpha,
        "lora_dropout": c.dropout,
        "target_modules": targets,
        "fan_in_fan_out": family == "gpt2",
        "bias": "none",
        "init_lora_weights": "gaussian" if c.init == "gaussian" else True,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "layers_pattern": None,
        "revision": None,
    })
    arrays = dict(sorted(arrays.items()))
    with atomic_write(folder / WEIGHTS_FILE, "wb") as stream:
        write_safetensors(stream, arrays, {key: a.shape for key, a in arrays.items()}, {"format": "pt"})


def load_adapter(folder: Path, model: CausalLM) -> Adapter:
    """Put the adapter of `folder` into `model`.

    Raises:
        UserError: files missing, damaged or with settings that are not supported; or an adapter of another base,
            with the list of what does not fit.
    """
    folder = Path(folder)
    config = read_adapter_config(folder / CONFIG_FILE)
    arrays = read_adapter_weights(folder / WEIGHTS_FILE)
    rank = {a.shape[0] for name, a in arrays.items() if name.endswith("lora_A")}
    if rank - {config.r}:
        raise UserError(f"{folder}: {CONFIG_FILE} says r = {config.r}, but {WEIGHTS_FILE} holds rank "
                        f"{', '.join(map(str, sorted(rank)))}. The two files do not belong together.")
    if not isinstance(config.target_modules, str):  # of its targets PEFT needs one to match, and keeps the others
        modules = [name.rsplit(".", 1)[0] for name in arrays]
        used = tuple(t for t in config.target_modules if any(selects(t, name) for name in modules))
        config = replace(config, target_modules=used or config.target_modules)
    try:
        adapter = inject(model, config)
        adapter.load(arrays)
    except UserError as error:
        base = read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
        raise UserError(f"{folder}: {error}\nThe base that its {CONFIG_FILE} names: {base}") from error
    return adapter


def read_adapter_config(path: Path) -> LoraConfig:
    """
    Raises:
        UserError: not a LoRA adapter's configuration, or one with settings that are not supported; all are listed.
    """
    values = read_json(path)
    wrong = []
    if values.get("peft_type") != "LORA":
        wrong.append(f"peft_type: expected LORA, found {values.get('peft_type')!r}")
    wrong += [f"{key}: {values[key]!r} is not supported" for key, unused in UNUSED.items()
              if key in values and values[key] not in unused]
    start = values.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        wrong.append(f"init_lora_weights: {start!r} is not supported, as it changes the base model; with PEFT, "
                     "save_pretrained(…, path_initial_model_for_weight_conversion=…) makes a plain adapter of it")
    r, alpha, dropout = values.get("r", 8), values.get("lora_alpha", 8), values.get("lora_dropout", 0.0)
    if not isinstance(r, int) or isinstance(r, bool):
        wrong.append(f"r: expected a whole number, found {r!r}")
    wrong += [f"{key}: expected a number, found {value!r}" for key, value in
              (("lora_alpha", alpha), ("lora_dropout", dropout))
              if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > LARGEST_NUMBER]
    targets = values.get("target_modules")
    if isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets):
        targets = tuple(targets)
    elif not isinstance(targets, str) or not targets:
        wrong.append(f"target_modules: expected names or a regular expression, found {targets!r}")
    if wrong:
        raise UserError(f"{path}:\n  {listing(wrong)}")
    init = "gaussian" if start == "gaussian" else "kaiming"
    try:
        return LoraConfig(r=r, alpha=float(alpha), dropout=float(dropout), target_modules=targets, init=init)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_adapter_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays by our names ("<module>.lora_A"), float32.

    Raises:
        UserError: missing, damaged, or with keys that no LoRA adapter has; all are listed.
    """
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin")
        hint = (f" There is {pickled.name}, a pickle, which is never loaded: save the adapter again with "
                "save_pretrained(…, safe_serialization=True).") if pickled.is_file() else ""
        raise UserError(f"{path}: no such file.{hint}")
    arrays, wrong = {}, []
    file = SafetensorsFile(path)
    for key, entry in file.entries.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.(lora_[AB])\.weight", key)
        if not match or len(entry.shape) != 2:
            wrong.append(f"{key}: expected a LoRA matrix of a linear layer, found shape {entry.shape}")
        elif entry.dtype not in FLOAT_TYPES:
            wrong.append(f"{key}: expected one of {', '.join(FLOAT_TYPES)}, found {entry.dtype}")
        else:
            arrays[f"{match.group(1)}.{match.group(2)}"] = file[key]
    wrong += [f"{key}: holds numbers that are not finite" for key, a in arrays.items() if not np.isfinite(a).all()]
    if wrong:
        raise UserError(f"{path}:\n  {listing(wrong)}")
    if not arrays:
        raise UserError(f"{path}: holds no arrays.")
    return arrays


def peft_name(name: str) -> str:
    """PEFT's key for "<module>.lora_A"."""
    return f"{PREFIX}{name}.weight"
