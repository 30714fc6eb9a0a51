"""The name that was probably meant by an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other tools call a setting.
ELSEWHERE = {
    "accumulation": "gradient_accumulation",
    "alpha": "lora_alpha",
    "alpha_pattern": "lora_alpha_pattern",
    "bias": "lora_bias",
    "dropout": "lora_dropout",
    "grad_accum": "gradient_accumulation",
    "gradient_accumulation_steps": "gradient_accumulation",
    "init_lora_weights": "lora_init",
    "layers_pattern": "lora_layers_pattern",
    "layers_to_transform": "lora_layers_to_transform",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "max_tokens_to_generate": "max_new_tokens",
    "model": "base",
    "model_name_or_path": "base",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "output_dir": "output",
    "per_device_train_batch_size": "batch_size",
    "r": "lora_r",
    "rank": "lora_r",
    "rank_pattern": "lora_rank_pattern",
    "steps": "max_steps",
    "train_file": "data",
    "use_dora": "lora_use_dora",
    "use_rslora": "lora_use_rslora",
    "validation_file": "dev",
    "warmup": "warmup_steps",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` closest to `name`, with dashes and underscores treated alike, or None."""
    plain = {candidate.replace("_", "-").lower(): candidate for candidate in known}
    name = name.replace("_", "-").lower()
    elsewhere = ELSEWHERE.get(name.replace("-", "_"), "").replace("_", "-")
    near = [elsewhere, *difflib.get_close_matches(name, plain, n=1)]
    return next((plain[candidate] for candidate in near if candidate in plain), None)


def did_you_mean(name: str | None) -> str:
    """The end of a message about an unknown name, given the result of `nearest`."""
    return f"; did you mean {name}?" if name else ""
