"""The settings of a training run. One recipe (a YAML file) is one RunConfig."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Optional, Union

from pydantic import field_validator

from jittor_lora.data.template import DEFAULT_TEMPLATE, Template
from jittor_lora.errors import UserError
from jittor_lora.files.patterns import wrong_pattern
from jittor_lora.settings import recipe
from jittor_lora.settings.base import PATH, TEXT, Problem, Settings, setting

MODEL, DATA, LORA, TRAINING, OPTIMISER = "Model", "Data", "LoRA", "Training", "Optimiser"
VALIDATION, OUTPUTS = "Validation", "Checkpoints and logs"

SPECIAL_TOKENS = "what a special token spelled out, such as <|im_start|>, is: text like any other, or the token"
LARGEST_SEED = 2**63 - 1
LINE_BREAKS = r"\n is a line break, \\ a backslash"  # in the help of texts

# In no sensible name or template; YAML takes some of them for line breaks, so that a dumped recipe would differ.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


_MAY_CHANGE = ("threads", "on_non_finite", "base", "data", "dev")  # in a run that is resumed


class RunConfig(Settings):
    """Every setting of a training run, checked at construction (see `Settings`)."""

    exclusive = (("max_steps", "epochs"), ("warmup_steps", "warmup_ratio"))

    base: str = setting("auto", MODEL, "base model: a folder, a named base (gpt2, smollm2-135m), a Hub id, or auto",
                        holds=PATH, min_length=1)

    data: Optional[str] = setting(None, DATA, "training data: a file of SQuAD v1.1 JSON, of JSON Lines with prompt and "
                                  "completion or of E2E's lines, squad-train, sample-train, or e2e-train", holds=PATH,
                                  min_length=1)
    dev: Optional[str] = setting(None, DATA, "validation data: a file, squad-dev, sample-dev or e2e-dev; by default "
                                 "none", holds=PATH, min_length=1)
    max_train: Optional[int] = setting(None, DATA, "train on a seeded subset of so many questions; by default all",
                                       ge=1)
    max_dev: Optional[int] = setting(None, DATA, "validate on a seeded subset of so many questions; by default all",
                                     ge=1)
    template: str = setting(DEFAULT_TEMPLATE, DATA, "text made of {context}, {question} and, at its end, {answer}; "
                            + LINE_BREAKS, holds=TEXT)
    special_tokens: Literal["text", "token"] = setting("text", DATA, SPECIAL_TOKENS)
    prompt_loss_weight: float = setting(0.0, DATA, "weight of the prompt's tokens in the loss; the answer's is 1",
                                        ge=0, le=1)
    share_prefixes: bool = setting(True, DATA, "compute a paragraph once for all its questions in a batch")
    max_tokens: Optional[int] = setting(None, DATA, "longest example in tokens; by default what the model can take",
                                        ge=8)

    method: Literal["lora", "full"] = setting("lora", TRAINING, "train an adapter (lora), or all weights of the base "
                                              "in float32 (full)")
    lora_r: int = setting(8, LORA, "rank of the update", ge=1, le=4096)
    lora_alpha: float = setting(16.0, LORA, "the update is scaled by alpha / r", gt=0)
    lora_dropout: float = setting(0.1, LORA, "dropout on the input of the update", ge=0, lt=1)
    target_modules: Optional[Union[list[str], str]] = setting(
        None, LORA, "modules that get an update: names by suffix, a regular expression over whole names, or "
        "all-linear; by default c_attn,c_proj,c_fc (GPT-2) or all seven projections (Llama)",
        expected="module names (c_attn,c_proj), a regular expression, or all-linear")
    exclude_modules: Optional[Union[list[str], str]] = setting(
        None, LORA, "modules that are left out of target_modules: names by suffix, or a regular expression",
        expected="module names (c_attn,c_proj) or a regular expression")
    modules_to_save: Optional[list[str]] = setting(
        None, LORA, "modules that are trained and saved whole, by the end of their names, such as ln_f,wte or lm_head",
        expected="ends of module names (ln_f,wte)")
    lora_init: str = setting(
        "gaussian", LORA, "how A and B begin: gaussian (A with standard deviation 1/r, B zero), kaiming (A uniform, B "
        "zero, as in PEFT), pissa or pissa_niter_N (the weight's largest singular values, exactly or by N iterations), "
        "olora (its QR decomposition)", expected="gaussian, kaiming, pissa, pissa_niter_N or olora")
    lora_use_rslora: bool = setting(False, LORA, "scale the update by alpha / sqrt(r) (rsLoRA)")
    lora_use_dora: bool = setting(False, LORA, "train lengths of the weights' rows apart from directions (DoRA)")
    lora_rank_pattern: Optional[dict[str, int]] = setting(
        None, LORA, "other ranks by module: NAME=N,…, a name being a regular expression for the end of a module's",
        expected="modules with their rank (c_attn=16,mlp.c_proj=4)")
    lora_alpha_pattern: Optional[dict[str, float]] = setting(
        None, LORA, "other alphas by module: NAME=X,…, as lora_rank_pattern",
        expected="modules with their alpha (c_attn=32,mlp.c_proj=8)")
    lora_layers_to_transform: Optional[list[int]] = setting(
        None, LORA, "update only blocks of these numbers, counted from 0", expected="numbers of blocks (0,1,5)")
    lora_layers_pattern: Optional[list[str]] = setting(
        None, LORA, "what the list of blocks that lora_layers_to_transform counts is called; by default any list",
        expected="names (h,layers)")
    lora_bias: Literal["none", "all", "lora_only"] = setting(
        "none", LORA, "biases that are trained too: none, all of the model, or those of updated modules")
    qv_only: bool = setting(False, LORA, "in GPT-2's fused c_attn update queries and values only, not keys")

    epochs: Optional[float] = setting(1.0, TRAINING, "passes over the training data", gt=0)
    max_steps: Optional[int] = setting(None, TRAINING, "number of optimiser steps, in place of --epochs", ge=1)
    batch_size: int = setting(8, TRAINING, "questions in a batch; about so many, as a paragraph stays whole", ge=1)
    whole_paragraphs: bool = setting(True, TRAINING, "keep the questions of a paragraph, or a prompt's completions, in "
                                     "one batch; otherwise batches are drawn from all of them")
    gradient_accumulation: int = setting(1, TRAINING, "batches in an optimiser step", ge=1)
    max_tokens_per_stream: int = setting(1024, TRAINING, "most tokens in one forward pass; a larger batch takes "
                                         "several passes, with the same loss and gradients", ge=8)
    precision: Literal["fp32", "bf16"] = setting(
        "bf16", TRAINING, "numbers of the products with frozen weights; bf16 is nearly twice as fast as fp32, which is "
        "taken where the processor has no bf16")
    label_smoothing: float = setting(0.0, TRAINING, "share of each label that is spread over the whole vocabulary; "
                                     "validation losses are without it", ge=0, lt=1)
    threads: Optional[int] = setting(None, TRAINING, "processor threads; by default one for each core", ge=1)
    activation_checkpointing: bool = setting(False, TRAINING, "keep only each block's input and compute the rest "
                                             "again in the backward pass: less memory, more time")
    on_non_finite: Literal["stop", "skip"] = setting(
        "stop", TRAINING, "where the loss or the gradient of a step is NaN or infinite: stop, or skip the step, though "
        "the tenth in a row stops")
    seed: int = setting(42, TRAINING, "seed of subset, order, initial weights and dropout", ge=0, le=LARGEST_SEED)

    # Peak rate of the LoRA paper for GPT-2 (Hu et al. 2021, table 11).
    learning_rate: float = setting(2e-4, OPTIMISER, "peak learning rate", gt=0)
    loraplus_lr_ratio: Optional[float] = setting(
        None, OPTIMISER, "the learning rate of B is so many times that of A, such as 16 (LoRA+); by default equal",
        gt=0)
    loraplus_lr_embedding: float = setting(1e-6, OPTIMISER, "with loraplus_lr_ratio, the learning rate of updates of "
                                           "embeddings", gt=0)
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", OPTIMISER, "learning rate after the warmup")
    warmup_steps: Optional[int] = setting(None, OPTIMISER, "steps of linear warmup, in place of --warmup-ratio", ge=0)
    warmup_ratio: Optional[float] = setting(0.05, OPTIMISER, "share of all steps that is linear warmup", ge=0, le=1)
    min_learning_rate_ratio: float = setting(0.0, OPTIMISER, "the schedule ends at this share of the peak", ge=0, le=1)
    weight_decay: float = setting(0.0, OPTIMISER, "decoupled weight decay of AdamW", ge=0)
    adam_beta1: float = setting(0.9, OPTIMISER, "decay of AdamW's mean of gradients", ge=0, lt=1)
    adam_beta2: float = setting(0.999, OPTIMISER, "decay of AdamW's mean of squared gradients", ge=0, lt=1)
    adam_epsilon: float = setting(1e-8, OPTIMISER, "term added to AdamW's denominator", gt=0)
    max_grad_norm: float = setting(1.0, OPTIMISER, "clip the norm of the whole gradient to this; 0 turns clipping off",
                                   ge=0)

    eval_every: Optional[int] = setting(None, VALIDATION, "validation loss after every so many steps; by default at "
                                        "the end only", ge=1)
    eval_questions: int = setting(0, VALIDATION, "also answer so many validation questions for EM and F1; 0 turns it "
                                  "off", ge=0)
    patience: Optional[int] = setting(None, VALIDATION, "stop after so many validations in a row without a lower loss; "
                                      "by default never", ge=1)

    output: Optional[str] = setting(None, OUTPUTS, "run folder: adapter, checkpoints, logs, summary", holds=PATH,
                                    min_length=1)
    save_every: int = setting(200, OUTPUTS, "checkpoint after every so many steps; 0 saves at the end only", ge=0)
    keep_checkpoints: int = setting(2, OUTPUTS, "checkpoints kept, the best aside", ge=1)
    tensorboard: bool = setting(True, OUTPUTS, "write TensorBoard event files")

    @classmethod
    def resolve(cls, file: str | None = None, overrides: Mapping[str, Any] | None = None,
                origins: Mapping[str, str] | None = None) -> RunConfig:
        """Settings with the precedence overrides > recipe > defaults.

        Args:
            file: path of a recipe or name of a shipped one.
            overrides: field name -> value or its text.
            origins: field name -> where the override came from; by default its flag.

        Raises:
            UserError: the recipe cannot be read, or a setting is unknown, wrong or in conflict; all are listed.
        """
        layers = []
        if file is not None:
            values, places = recipe.read(recipe.find(file))
            layers.append((cls.written(values), places))
        overrides = dict(overrides or {})
        layers.append((overrides, origins or {name: flag(name) for name in overrides}))
        return cls.layered(layers)

    def differences(self, before: RunConfig) -> list[str]:
        """What `before`, the settings that a run began with, has otherwise and that matters to its numbers; a line each
        with setting, value in the run and value here. Where and how often a run writes, the number of threads, and what
        happens where numbers are not finite, do not matter; nor does where base and data are, as what they hold is
        compared by fingerprint."""
        return [f"{name} ({self.origin(name)}): {getattr(before, name)} in the run, now {getattr(self, name)}"
                for name, field in type(self).model_fields.items()
                if field.json_schema_extra["group"] != OUTPUTS and name not in _MAY_CHANGE
                and getattr(before, name) != getattr(self, name)]

    def warmup(self, total_steps: int) -> int:
        """Warmup steps of a run of `total_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(total_steps * (self.warmup_ratio or 0.0))

    @field_validator("modules_to_save", "lora_layers_to_transform", "lora_layers_pattern", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("lora_rank_pattern", "lora_alpha_pattern", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.rpartition("=") for part in value.split(",")]
        return {name.strip(): number.strip() for name, _, number in pairs}

    @field_validator("lora_rank_pattern", "lora_alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and (not value or not all(name and number > 0 for name, number in value.items())):
            raise ValueError(f"expected names with numbers above 0, found {value}")
        for name in value or ():
            _expression(name)
        return value

    @field_validator("modules_to_save", "lora_layers_pattern", "lora_layers_to_transform")
    @classmethod
    def _not_empty(cls, value: list | None) -> list | None:
        if value is not None and (not value or not all(item != "" for item in value)):
            raise ValueError(f"expected at least one and no empty ones, found {value}")
        if value is not None and any(isinstance(item, int) and item < 0 for item in value):
            raise ValueError(f"expected numbers of blocks from 0 on, found {value}")
        return value

    @field_validator("lora_init")
    @classmethod
    def _start(cls, value: str) -> str:
        if not re.fullmatch(r"gaussian|kaiming|olora|pissa(_niter_[1-9]\d?)?", value):
            raise ValueError("expected gaussian, kaiming, pissa, pissa_niter_N (N from 1 to 99) or olora, found "
                             f"{value!r}")
        return value

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _names_or_expression(cls, value: list[str] | str | None) -> list[str] | str | None:
        if isinstance(value, str) and value != "all-linear":
            names = [name.strip() for name in value.split(",")]
            if not all(re.fullmatch(r"[\w.]+", name) for name in names):
                return _expression(value)
            value = names
        if value is not None and (not value or not all(isinstance(name, str) and name.strip() for name in value)):
            raise ValueError(f"expected at least one name and no empty ones, found {value}")
        return value

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return checked_template(value)

    @field_validator("base", "data", "dev", "output", "template")
    @classmethod
    def _no_control_characters(cls, value: str | None) -> str | None:
        found = CONTROL.search(value or "")
        if found:
            raise ValueError(f"holds the control character U+{ord(found.group()):04X} at position {found.start()}")
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
                          "a constant schedule stays at the peak; leave this out or take linear or cosine")
        if self.patience is not None and self.eval_every is None:
            yield Problem(("patience", "eval_every"), "early stopping needs validations on the way; give eval_every")
        if self.lora_layers_to_transform is not None and isinstance(self.target_modules, str):
            yield Problem(("lora_layers_to_transform", "target_modules"),
                          "goes with names as target_modules; write the layers into the regular expression")
        if self.lora_layers_pattern is not None and self.lora_layers_to_transform is None:
            yield Problem(("lora_layers_pattern", "lora_layers_to_transform"),
                          "has no effect without lora_layers_to_transform")
        if self.loraplus_lr_ratio is None and self.origin("loraplus_lr_embedding") == flag("loraplus_lr_embedding"):
            yield Problem(("loraplus_lr_embedding", "loraplus_lr_ratio"), "has no effect without loraplus_lr_ratio")
        if self.qv_only and isinstance(self.target_modules, list) \
                and not any(name.split(".")[-1] == "c_attn" for name in self.target_modules):
            yield Problem(("qv_only", "target_modules"),
                          "it is about GPT-2's c_attn, which is not among target_modules")
        if self.method == "full":
            for name, field in type(self).model_fields.items():
                group = field.json_schema_extra["group"]
                if (group == LORA or name.startswith("loraplus")) and self.origin(name) == flag(name):
                    yield Problem((name, "method"), "is about adapters, and full trains all weights; leave it out")
            if self.precision != "fp32" and self.origin("precision") == flag("precision"):
                yield Problem(("precision", "method"), "full trains in float32; leave this out")
        if self.dev is None:
            # A recipe may hold more than a run without validation data uses; what is typed must have an effect.
            for name in ("max_dev", "eval_every", "eval_questions", "patience"):
                if getattr(self, name) and self.origin(name) == flag(name):
                    yield Problem((name, "dev"), "needs validation data; give dev, or leave this out")


def checked_template(text: str) -> str:
    """
    Raises:
        ValueError: with what is wrong with the template.
    """
    try:
        Template(text)
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


def flag(field: str) -> str:
    """The command line's flag of a field: "--lora-r"."""
    return "--" + field.replace("_", "-")


def _expression(text: str) -> str:
    problem = wrong_pattern(text)
    if problem:
        raise ValueError(f"{problem}; it is {text[:80]!r}")
    return text
