"""`LoraConfig` and PEFT's adapter_config.json: each from the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_check import SHOWN, read_config
from jittor_lora.formats.hugging_face import shorten
from jittor_lora.lora.config import LoraConfig
from jittor_lora.settings.lora import DEFINITIONS, problems

# Field of `LoraConfig` -> key. `qv_only` has none: rows without an update are saved as zeros.
KEYS = {name: field.metadata["peft"] for name, field in DEFINITIONS.items() if field.metadata["peft"]}
# The keys that are written, in PEFT's order.
WRITTEN = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules",
           "exclude_modules", "fan_in_fan_out", "bias", "init_lora_weights", "inference_mode", "use_rslora", "use_dora",
           "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
           "revision")
WITHOUT_EFFECT = {"auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
                  "fan_in_fan_out", "inference_mode", "loftq_config", "lora_ga_config", "megatron_core", "peft_version",
                  "qalora_group_size", "revision", "runtime_config", "task_type", "velora_config"}
# The values of a setting that is not used. Any other key with any other value is refused by name.
UNUSED = (None, False, "none", [], {})
# PEFT's values of init_lora_weights that leave the base model as it is.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
DEFAULT_ALPHA = 8  # PEFT's
_SETS = ("target_modules", "exclude_modules", "modules_to_save")  # names without an order


def peft_settings(config: LoraConfig, base: str, family: str) -> dict[str, Any]:
    """The adapter_config.json of `config`.

    Args:
        base: name or folder of the base model.
        family: "gpt2" or "llama"; `fan_in_fan_out` is about GPT-2's Conv1D weights.
    """
    values = {key: _written(name, getattr(config, name)) for name, key in KEYS.items()}
    values.update(peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=base,
                  fan_in_fan_out=family == "gpt2", inference_mode=True, revision=None)
    if config.lora_bias:
        values["init_lora_weights"] = True  # PEFT accepts no other
    return {key: values[key] for key in WRITTEN}


def read_adapter_config(path: Path) -> LoraConfig:
    """The settings of any version of PEFT from 0.3 on; a missing key has the value it implied in its version.

    Raises:
        UserError: not the configuration of a LoRA adapter, or one with unsupported settings; all are listed.
    """
    return config_of(path, read_config(path))


def config_of(path: Path, values: Mapping[str, Any]) -> LoraConfig:
    """The same for the `values` of the file `path`, as `read_config` returned them."""
    wrong = list(_unsupported(values))
    if not wrong:
        found = {name: _read(name, values[key]) for name, key in KEYS.items()
                 if values.get(key) not in (None, "", [], {})}
        found = {"alpha": float(DEFAULT_ALPHA), "init": "kaiming", **found}
        if "layers_to_transform" not in found:
            found.pop("layers_pattern", None)
        wrong = [f"{KEYS[problem.fields[0]]}: {problem.text}"
                 for problem in problems({**vars(LoraConfig()), **found}, KEYS.__getitem__)]
    if wrong:
        raise UserError(f"{path}:\n  " + shorten(wrong, SHOWN, separator="\n  "))
    return LoraConfig(**found)


def _unsupported(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if key not in WITHOUT_EFFECT and key not in (*KEYS.values(), "peft_type") and not _unused(value):
            yield f"{key}: {value!r} is not supported"
    if values.get("ensure_weight_tying") not in (None, False):
        yield "ensure_weight_tying: True is not supported; a tied head keeps the base's weight"
    init = values.get("init_lora_weights")
    if init not in (*PLAIN_INITS, "pissa", "olora"):
        yield (f"init_lora_weights: {init!r} is not supported, as it changes the base model in a way that cannot be "
               "computed again; with PEFT, save_pretrained(…, path_initial_model_for_weight_conversion=…) makes a "
               "plain adapter of it")


def _written(name: str, value: Any) -> Any:
    if name == "init":
        return True if value == "kaiming" else value
    if name in _SETS:
        return value if isinstance(value, str) else sorted(value) or None
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _read(name: str, value: Any) -> Any:
    """A value of the file that is not empty, as `LoraConfig` has it."""
    if name == "init":
        return value if value in ("gaussian", "pissa", "olora") else "kaiming"
    if name in ("alpha", "dropout"):
        return float(value)
    if name in ("layers_to_transform", "layers_pattern") and not isinstance(value, list):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _unused(value: Any) -> bool:
    return any(value is unused or (type(value) is type(unused) and value == unused) for unused in UNUSED)
