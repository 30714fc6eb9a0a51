"""The settings of a training run. One recipe (a YAML file) is one RunConfig."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Optional, Union

from pydantic import ValidationInfo, field_validator

from jittor_lora.settings import recipe
from jittor_lora.settings.base import PATH, Settings, setting
from jittor_lora.settings.lora import DEFINITIONS, conflicts
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.reports import Destinations, from_tensorboard, report_to_setting
from jittor_lora.settings.shared import (
    DATA,
    LARGEST_SEED,
    BasePrecision,
    ChatArguments,
    Columns,
    Precision,
    Scoring,
    SpecialTokens,
    TemplateText,
    base_precision_setting,
    chat_arguments_setting,
    chat_template_setting,
    columns_setting,
    precision_setting,
    scoring_setting,
    special_tokens_setting,
    template_setting,
)
from jittor_lora.settings.text import flag

MODEL, LORA, TRAINING, OPTIMISER = "Model", "LoRA", "Training", "Optimiser"
VALIDATION, OUTPUTS = "Validation", "Checkpoints and logs"

# In no sensible name or template; YAML reads some of them as line breaks, so a dumped recipe would differ.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")

_MAY_CHANGE = ("threads", "on_non_finite", "base", "data", "dev", "scoring")  # when a run is resumed


def _lora(name: str, default: Any = ...) -> Any:
    """The setting of the field `name` of `LoraConfig`.

    Args:
        default: where it is not the field's.
    """
    field = DEFINITIONS[name]
    return setting(field.default if default is ... else default, LORA, field.metadata["description"],
                   expected=field.metadata["kind"].expected, lora=name)


class RunConfig(Settings):
    """Every setting of a training run, checked at construction (see `Settings`)."""

    exclusive = (("max_steps", "epochs"), ("warmup_steps", "warmup_ratio"))
    former = {"tensorboard": ("report_to", from_tensorboard)}

    base: str = setting("auto", MODEL, "base model: a folder, a named base (gpt2, smollm2-135m), a Hub id, or auto",
                        holds=PATH, min_length=1)

    data: Optional[str] = setting(None, DATA, "training data: a file of conversations, prompts or questions (JSON, "
                                  "CSV, parquet), hub:organisation/name, squad-train, sample-train, e2e-train or "
                                  "dart-train", holds=PATH, min_length=1)
    dev: Optional[str] = setting(None, DATA, "validation data: the same kinds, squad-dev, sample-dev, e2e-dev, "
                                 "webnlg-dev or dart-dev; by default none", holds=PATH, min_length=1)
    columns: Columns = columns_setting()
    max_train: Optional[int] = setting(None, DATA, "train on a seeded subset of N examples; by default all", ge=1)
    max_dev: Optional[int] = setting(None, DATA, "validate on a seeded subset of N examples; by default all", ge=1)
    template: TemplateText = template_setting(DATA, "text with {context} and {question}, each at least once, "
                                            "and, at its end, {answer}")
    chat_template: Optional[str] = chat_template_setting(DATA, "the base's own")
    chat_arguments: ChatArguments = chat_arguments_setting(DATA)
    special_tokens: SpecialTokens = special_tokens_setting(DATA)
    references: Literal["most-frequent", "all", "sampled"] = setting(
        "most-frequent", DATA, "of a question's several reference answers, learn the most frequent one, all of them "
        "weighted by their shares, or one drawn by these shares in each epoch")
    prompt_loss_weight: float = setting(0.0, DATA, "weight of prompt tokens in the loss; answer tokens have 1", ge=0,
                                        le=1)
    share_prefixes: bool = setting(True, DATA, "compute a paragraph once for all its questions in a batch")
    max_tokens: Optional[int] = setting(None, DATA, "maximum length of an example in tokens; by default the model's",
                                        ge=8)

    method: Literal["lora", "full"] = setting("lora", TRAINING, "train an adapter (lora), or all weights of the base, "
                                              "kept in float32 (full)")
    lora_r: int = _lora("r")
    lora_alpha: float = _lora("alpha")
    lora_dropout: float = _lora("dropout", 0.1)
    target_modules: Optional[Union[list[str], str]] = _lora("target_modules", None)
    exclude_modules: Optional[Union[list[str], str]] = _lora("exclude_modules", None)
    modules_to_save: Optional[list[str]] = _lora("modules_to_save", None)
    lora_init: str = _lora("init")
    lora_use_rslora: bool = _lora("use_rslora")
    lora_use_dora: bool = _lora("use_dora")
    lora_rank_pattern: Optional[dict[str, int]] = _lora("rank_pattern", None)
    lora_alpha_pattern: Optional[dict[str, float]] = _lora("alpha_pattern", None)
    lora_layers_to_transform: Optional[list[int]] = _lora("layers_to_transform")
    lora_layers_pattern: Optional[list[str]] = _lora("layers_pattern")
    lora_bias: Literal["none", "all", "lora_only"] = _lora("bias")
    lora_b_bias: bool = _lora("lora_bias")
    qv_only: bool = _lora("qv_only")

    epochs: Optional[float] = setting(1.0, TRAINING, "passes over the training data", gt=0)
    max_steps: Optional[int] = setting(None, TRAINING, "number of optimiser steps, in place of --epochs", ge=1)
    batch_size: int = setting(8, TRAINING, "questions per batch, approximately, as a paragraph is not split", ge=1)
    whole_paragraphs: bool = setting(True, TRAINING, "keep the questions of a paragraph, or the completions of a "
                                     "prompt, in one batch; otherwise all examples are shuffled")
    gradient_accumulation: int = setting(1, TRAINING, "batches per optimiser step", ge=1)
    max_tokens_per_stream: int = setting(1024, TRAINING, "maximum number of tokens in one forward pass; a larger batch "
                                         "takes several passes, with the same loss and gradients", ge=8)
    precision: Precision = precision_setting(TRAINING)
    base_precision: BasePrecision = base_precision_setting(TRAINING)
    label_smoothing: float = setting(0.0, TRAINING, "share of each label spread over the whole vocabulary; validation "
                                     "losses are without smoothing", ge=0, lt=1)
    threads: Optional[int] = setting(None, TRAINING, "processor threads; by default one per core", ge=1)
    activation_checkpointing: bool = setting(False, TRAINING, "keep only each block's input and recompute the rest in "
                                             "the backward pass: less memory, more time")
    on_non_finite: Literal["stop", "skip"] = setting(
        "stop", TRAINING, "if the loss or the gradient of a step is NaN or infinite: stop, or skip the step; the tenth "
        "in a row always stops")
    seed: int = setting(42, TRAINING, "seed for subset, order, initial weights and dropout", ge=0, le=LARGEST_SEED)

    # Peak rate of the LoRA paper for GPT-2 (Hu et al. 2021, table 11).
    learning_rate: float = setting(2e-4, OPTIMISER, "peak learning rate", gt=0)
    loraplus_lr_ratio: Optional[float] = setting(
        None, OPTIMISER, "ratio of the learning rate of B to that of A, such as 16 (LoRA+); by default 1", gt=0)
    loraplus_lr_embedding: float = setting(1e-6, OPTIMISER, "with loraplus_lr_ratio, the learning rate of updates to "
                                           "embeddings", gt=0)
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", OPTIMISER, "learning rate after the warmup")
    warmup_steps: Optional[int] = setting(None, OPTIMISER, "steps of linear warmup, in place of --warmup-ratio", ge=0)
    warmup_ratio: Optional[float] = setting(0.05, OPTIMISER, "share of all steps used for linear warmup", ge=0, le=1)
    min_learning_rate_ratio: float = setting(0.0, OPTIMISER, "the schedule ends at this share of the peak", ge=0, le=1)
    weight_decay: float = setting(0.0, OPTIMISER, "decoupled weight decay of AdamW", ge=0)
    adam_beta1: float = setting(0.9, OPTIMISER, "decay rate of AdamW's first moment", ge=0, lt=1)
    adam_beta2: float = setting(0.999, OPTIMISER, "decay rate of AdamW's second moment", ge=0, lt=1)
    adam_epsilon: float = setting(1e-8, OPTIMISER, "term added to AdamW's denominator", gt=0)
    max_grad_norm: float = setting(1.0, OPTIMISER, "clip the global norm of the gradient to this; 0 turns clipping off",
                                   ge=0)

    eval_every: Optional[int] = setting(None, VALIDATION, "compute the validation loss every N steps; by default only "
                                        "at the end", ge=1)
    eval_questions: int = setting(0, VALIDATION, "also answer N validation questions for EM and F1; 0 turns it off",
                                  ge=0)
    scoring: Scoring = scoring_setting(VALIDATION)
    patience: Optional[int] = setting(None, VALIDATION, "stop after N validations in a row without a lower loss; by "
                                      "default never", ge=1)

    output: Optional[str] = setting(None, OUTPUTS, "run folder: adapter, checkpoints, logs, summary", holds=PATH,
                                    min_length=1)
    save_every: int = setting(200, OUTPUTS, "save a checkpoint every N steps; 0 saves only at the end", ge=0)
    keep_checkpoints: int = setting(2, OUTPUTS, "checkpoints to keep, besides the best", ge=1)
    report_to: Destinations = report_to_setting(OUTPUTS)

    @classmethod
    def resolve(cls, file: str | None = None, overrides: Mapping[str, Any] | None = None,
                origins: Mapping[str, str] | None = None) -> RunConfig:
        """Settings with the precedence overrides > recipe > defaults.

        Args:
            file: path of a recipe or name of a shipped one.
            overrides: field name -> value or its text.
            origins: field name -> where the override came from; by default its flag.

        Raises:
            UserError: the recipe cannot be read, or settings are unknown, wrong or in conflict; all are listed.
        """
        layers = []
        if file is not None:
            values, places = recipe.read(recipe.find(file))
            layers.append((cls.written(values), places))
        overrides = dict(overrides or {})
        layers.append((overrides, origins or {name: flag(name) for name in overrides}))
        return cls.layered(layers)

    def differences(self, before: RunConfig) -> list[str]:
        """The settings that differ from `before`, those of the run to resume: one line each, with both values.

        Settings without effect on the run's numbers may differ: where and how often it writes, the number of threads,
        and what to do when numbers are not finite. So may the paths of base and data, whose contents are compared by
        fingerprint.
        """
        return [f"{name} ({self.origin(name)}): {getattr(before, name)} in the run, now {getattr(self, name)}"
                for name, field in type(self).model_fields.items()
                if field.json_schema_extra["group"] != OUTPUTS and name not in _MAY_CHANGE
                and getattr(before, name) != getattr(self, name)]

    def warmup(self, total_steps: int) -> int:
        """Warmup steps of a run of `total_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(total_steps * (self.warmup_ratio or 0.0))

    @classmethod
    def lora_names(cls) -> dict[str, str]:
        """Field of `LoraConfig` -> the setting that holds it."""
        return {field.json_schema_extra["lora"]: name for name, field in cls.model_fields.items()
                if field.json_schema_extra["lora"]}

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """The value that a text on the command line or in a recipe stands for."""
        lora = cls.model_fields[info.field_name].json_schema_extra["lora"]
        return DEFINITIONS[lora].metadata["kind"].read(value) if lora and isinstance(value, str) else value

    @field_validator("*")
    @classmethod
    def _accepted(cls, value: Any, info: ValidationInfo) -> Any:
        lora = cls.model_fields[info.field_name].json_schema_extra["lora"]
        if lora and value is not None:
            kind = DEFINITIONS[lora].metadata["kind"]
            problem = f"expected {kind.expected}, found {value}" if value in ([], {}) else kind.wrong(value)
            if problem:
                raise ValueError(problem)
        return value

    @field_validator("base", "data", "dev", "output", "template")
    @classmethod
    def _no_control_characters(cls, value: str | None) -> str | None:
        found = CONTROL.search(value or "")
        if found:
            raise ValueError(f"contains the control character U+{ord(found.group()):04X} at position {found.start()}")
        return value

    def conflicts(self) -> Iterator[Problem]:
        if self.epochs is None and self.max_steps is None:
            yield Problem(("epochs", "max_steps"), "epochs and max_steps are both unset; give one of them")
        if self.max_tokens is not None and self.max_tokens > self.max_tokens_per_stream:
            yield Problem(("max_tokens", "max_tokens_per_stream"),
                          f"{self.max_tokens} is above max_tokens_per_stream, {self.max_tokens_per_stream}: "
                          "an example must fit into one forward pass")
        if self.schedule == "constant" and self.min_learning_rate_ratio > 0:
            yield Problem(("min_learning_rate_ratio", "schedule"),
                          "a constant schedule stays at the peak; leave this out or use linear or cosine")
        if self.patience is not None and self.eval_every is None:
            yield Problem(("patience", "eval_every"), "early stopping needs regular validations; give eval_every")
        if self.loraplus_lr_ratio is None and self.origin("loraplus_lr_embedding") == flag("loraplus_lr_embedding"):
            yield Problem(("loraplus_lr_embedding", "loraplus_lr_ratio"), "has no effect without loraplus_lr_ratio")
        yield from self._lora_conflicts()
        if self.method == "full":
            for name, field in type(self).model_fields.items():
                group = field.json_schema_extra["group"]
                if (group == LORA or name.startswith("loraplus")) and self.origin(name) == flag(name):
                    yield Problem((name, "method"), "applies to adapters, but full trains all weights; leave it out")
            if self.base_precision not in ("auto", "fp32"):
                yield Problem(("base_precision", "method"),
                              "full trains the weights, which it keeps in float32; leave this out")
        if self.dev is None:
            # A recipe may hold more than a run without validation data uses; a flag must have an effect.
            for name in ("max_dev", "eval_every", "eval_questions", "patience"):
                if getattr(self, name) and self.origin(name) == flag(name):
                    yield Problem((name, "dev"), "needs validation data; give dev, or leave this out")

    def _lora_conflicts(self) -> Iterator[Problem]:
        names = self.lora_names()
        for problem in conflicts({lora: getattr(self, name) for lora, name in names.items()}, names.__getitem__):
            yield Problem(tuple(names[lora] for lora in problem.fields), problem.text)
