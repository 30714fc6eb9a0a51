"""The LoRA settings of a run and the `LoraConfig` of its adapter: each from the other, and as a line of the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jittor_lora.errors import UserError
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.session import Session
from jittor_lora.settings.run import RunConfig


def lora_config(config: RunConfig, family: str) -> LoraConfig:
    """The adapter's settings; one that is unset in the run has the default of `LoraConfig`, but for the targets.

    Args:
        family: the base's, whose usual modules are the targets if `config` names none.
    """
    found = {lora: getattr(config, name) for lora, name in config.lora_names().items()}
    values = {lora: tuple(value) if isinstance(value, list) else value for lora, value in found.items()
              if value is not None}
    return LoraConfig(**{"target_modules": DEFAULT_TARGETS[family], **values})


def described(config: RunConfig, session: Session, adapter: LoraConfig) -> RunConfig:
    """`config` with the settings of a base and an adapter that already exist.

    Raises:
        UserError: a setting was given that the adapter has another value of; all are listed.
    """
    own = {name: _run_value(getattr(adapter, lora)) for lora, name in config.lora_names().items()}
    wrong = [f"{name}: {getattr(config, name)} ({config.origin(name)}), but the adapter has {value}"
             for name, value in own.items() if config.origin(name) != "default" and getattr(config, name) != value]
    if wrong:
        raise UserError("The active adapter has its own settings; leave these out:\n  " + "\n  ".join(wrong))
    return config.model_copy(update={**own, "base": session.base.name, "precision": session.model.precision,
                                     "base_precision": session.base_precision})


def adapter_line(config: LoraConfig) -> str:
    """Rank, alpha and whatever else is not the default, in one line."""
    parts = [f"rank {config.r}", f"alpha {config.alpha:g}"]
    parts += [name for name, on in (("rsLoRA", config.use_rslora), ("DoRA", config.use_dora),
                                    ("bias on B", config.lora_bias)) if on]
    parts += [f"{name} {value if isinstance(value, str) else ', '.join(map(str, value))}" for name, value in (
        ("init", config.init if config.changes_base else ""), ("saved whole", config.modules_to_save),
        ("biases", "" if config.bias == "none" else config.bias), ("without", config.exclude_modules),
        ("blocks", config.layers_to_transform or ()),
        ("other ranks", [f"{key}={rank}" for key, rank in config.rank_pattern.items()]),
        ("other alphas", [f"{key}={alpha:g}" for key, alpha in config.alpha_pattern.items()])) if value]
    return "; ".join(parts)


def _run_value(value: Any) -> Any:
    """A value of `LoraConfig` as a run's settings hold it: lists for tuples, and None for an empty collection."""
    if isinstance(value, tuple):
        return list(value) or None
    return dict(value) or None if isinstance(value, Mapping) else value
