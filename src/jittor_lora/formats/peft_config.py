"""`LoraConfig` and PEFT's adapter_config.json: each from the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_check import SHOWN, read_config, show
from jittor_lora.formats.hugging_face import shorten
from jittor_lora.lora.config import FAST_PISSA, LoraConfig
from jittor_lora.settings.lora import DEFINITIONS, problems

# Field of `LoraConfig` -> key. `qv_only` has none: rows without an update are saved as zeros.
KEYS = {name: field.metadata["peft"] for name, field in DEFINITIONS.items() if field.metadata["peft"]}
# The keys that are written, in PEFT's order.
WRITTEN = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules",
           "exclude_modules", "fan_in_fan_out", "bias", "init_lora_weights", "inference_mode", "use_rslora", "use_dora",
           "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
           "revision")
# Settings of PEFT that change results and are not implemented here; each is refused by name if it is in use.
NOT_SUPPORTED = {"layer_replication", "target_parameters", "megatron_config", "use_qalora", "alora_invocation_tokens",
                 "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"}
# Settings that are about certain tensors, see `peft_extras`.
ABOUT_TENSORS = {"ensure_weight_tying", "trainable_token_indices"}
WITHOUT_EFFECT = {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out",
                   "inference_mode", "loftq_config", "lora_ga_config", "megatron_core", "peft_version",
                  "qalora_group_size", "revision", "runtime_config", "task_type", "velora_config"}
# The values of a setting that is not used.
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
        if key in NOT_SUPPORTED and not _unused(value):
            yield f"{key}: {show(value)} is not supported"
    init = values.get("init_lora_weights")
    if init not in (*PLAIN_INITS, "pissa", "olora") and not _is_fast_pissa(init):
        yield (f"init_lora_weights: {init!r} is not supported, as it changes the base model in a way that cannot be "
               "computed again; with PEFT, save_pretrained(…, path_initial_model_for_weight_conversion=…) makes a "
               "plain adapter of it")


def setting_notes(values: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on settings that are not taken as they stand, of an adapter that `config_of` accepts."""
    known = {*WITHOUT_EFFECT, *KEYS.values(), *NOT_SUPPORTED, *ABOUT_TENSORS, "peft_type"}
    unknown = [f"{show(key)[1:-1]}: {show(value)}" for key, value in values.items()
               if key not in known and not _unused(value)]
    if unknown:
        yield (f"settings that are not known here, perhaps of a newer PEFT ({show(values.get('peft_version'))}): "
               f"{shorten(unknown, SHOWN)}. Every tensor has its place without them; whether they change the results "
               "is not known.")
    init = values.get("init_lora_weights")
    if _is_fast_pissa(init):
        yield (f"init_lora_weights: {init}: the part of the base that it took away was found from random numbers and "
               "is computed here exactly, as for pissa. With few iterations the results differ from those in training, "
               "as they do when PEFT loads it. Its save_pretrained(…, path_initial_model_for_weight_conversion=…) "
               "makes a plain adapter.")


def _is_fast_pissa(init: Any) -> bool:
    return isinstance(init, str) and bool(FAST_PISSA.fullmatch(init))


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
        if _is_fast_pissa(value):
            return "pissa"
        return value if value in ("gaussian", "pissa", "olora") else "kaiming"
    if name in ("alpha", "dropout"):
        return float(value)
    if name in ("layers_to_transform", "layers_pattern") and not isinstance(value, list):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _unused(value: Any) -> bool:
    return any(value is unused or (type(value) is type(unused) and value == unused) for unused in UNUSED)
