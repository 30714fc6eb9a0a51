"""The settings of `align`: those of a training run that both sides share, and what is compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Dict, Literal, Optional

from pydantic import field_validator

from jittor_lora.settings.base import PATH, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.run import LORA, TRAINING, VALIDATION, RunConfig
from jittor_lora.settings.text import flag

COMPARISON = "Comparison"


class AlignConfig(RunConfig):
    """A short training run without checkpoints, in float32."""

    steps: int = setting(50, TRAINING, "number of optimiser steps", ge=1)
    lora_dropout: float = setting(0.0, LORA, "dropout on the input of A in training; above 0 the two sides are only "
                                  "compared up to the first step, since their masks differ", lora="dropout")
    eval_questions: int = setting(20, VALIDATION, "validation questions that both sides answer after training", ge=0)
    held_out: int = setting(8, VALIDATION, "validation examples on which logits are compared after training", ge=0)
    tolerances: Optional[Dict[str, float]] = setting(
        None, COMPARISON, "differences to allow in place of the default ones, such as losses=0.05,held_out=0.1; the "
        "report names all of them", expected="checks with numbers from 0 (losses=0.05,held_out=0.1)")
    language: Literal["en", "zh"] = setting("en", COMPARISON, "language of the PNG charts")
    font: Optional[str] = setting(None, COMPARISON, "font file for the charts; by default an installed font",
                                  holds=PATH, min_length=1)

    own: ClassVar[tuple[str, ...]] = ("steps", "held_out", "tolerances", "language", "font")
    # Settings of `train` that are no flags here: both sides train an adapter in float32 for `steps` steps, and write
    # nothing on the way.
    unused: ClassVar[tuple[str, ...]] = (
        "method", "precision", "epochs", "max_steps", "max_dev", "eval_every", "patience", "save_every",
        "keep_checkpoints", "report_to", "on_non_finite")

    @field_validator("tolerances", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {name.strip(): number.strip() for name, _, number in (part.partition("=") for part in value.split(","))}

    @field_validator("tolerances")
    @classmethod
    def _from_zero(cls, value: Optional[Dict[str, float]]) -> Optional[Dict[str, float]]:
        wrong = [f"{name}={number:g}" for name, number in (value or {}).items() if not number >= 0]
        if wrong:
            raise ValueError(f"expected numbers from 0, found {', '.join(wrong)}")
        return value

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.method != "lora":
            yield Problem(("method",), "align trains an adapter; leave this out")
        if self.qv_only:
            yield Problem(("qv_only",), "PEFT has no such setting, so there is nothing to compare with")
        if self.dev is None and self.held_out and self.origin("held_out") == flag("held_out"):
            yield Problem(("held_out", "dev"), "needs validation data; give dev, or leave this out")
        if self.min_learning_rate_ratio > 0:
            yield Problem(("min_learning_rate_ratio",), "transformers' schedules end at 0; leave this out")

    def run(self) -> RunConfig:
        """The settings of the run on our side."""
        values = self.model_dump(exclude={*self.own, *self.unused})
        values.update(max_steps=self.steps, epochs=None, precision="fp32", eval_questions=0, save_every=0)
        return RunConfig({name: self.origin(name) for name in values}, **values)
