"""The settings of `curve`: those of a training run, and the one to vary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Optional

from pydantic import field_validator

from jittor_lora.settings.base import PATH, setting
from jittor_lora.settings.kinds import MAX_RANK
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.run import RunConfig
from jittor_lora.settings.text import flag

CURVE = "Curve"
POINTS = {"examples": ("16", "64", "256", "1024", "all"), "rank": ("1", "2", "4", "8", "16", "32", "64"),
          "seed": ("1", "2", "3")}


class CurveConfig(RunConfig):
    """Runs that differ in one setting: the number of training examples, the rank, or the seed."""

    over: Literal["examples", "rank", "seed"] = setting("examples", CURVE, "the setting to vary")
    points: Optional[list[str]] = setting(
        None, CURVE, "values of it; by default 16,64,256,1024,all examples, ranks 1,2,4,8,16,32,64, or seeds "
        "1,2,3",
        expected="whole numbers above 0, or all for all examples (16,64,all)")
    min_steps: int = setting(100, CURVE, "minimum number of optimiser steps per run; with few examples, more passes "
                             "than --epochs", ge=1)
    extractive: bool = setting(False, CURVE, "answer with the likeliest span of the context, see evaluate")
    alpha_ratio: Optional[float] = setting(None, CURVE, "with --over rank: alpha divided by the rank; by default alpha "
                                           "is lora_alpha at every rank", gt=0)
    language: Literal["en", "zh"] = setting("en", CURVE, "language of the plot's labels")
    font: Optional[str] = setting(None, CURVE, "font file for the plot's labels; by default an installed font",
                                  holds=PATH, min_length=1)

    own: ClassVar[tuple[str, ...]] = ("over", "points", "min_steps", "extractive", "alpha_ratio", "language", "font")

    @field_validator("points", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("points")
    @classmethod
    def _numbers(cls, value: Optional[list[str]]) -> Optional[list[str]]:
        wrong = [point for point in value or () if not re.fullmatch(r"all|0{0,9}[1-9][0-9]{0,8}", point)]
        if value is not None and (not value or wrong or len(set(value)) < len(value)):
            raise ValueError(f"expected distinct whole numbers above 0, or all for all examples, found {value}")
        return value

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.over != "examples" and "all" in (self.points or ()):
            yield Problem(("points", "over"), f"a {self.over} is a number; all stands for all examples")
        if self.over == "rank" and any(point != "all" and int(point) > MAX_RANK for point in self.points or ()):
            yield Problem(("points", "over"), f"ranks are at most {MAX_RANK}")
        if self.over == "rank" and self.method == "full":
            yield Problem(("method", "over"), "full fine-tuning has no rank")
        if self.over != "rank" and self.alpha_ratio is not None:
            yield Problem(("alpha_ratio", "over"), "applies to ranks only")
        if self.dev is None and self.origin("over") == flag("over"):
            yield Problem(("dev",), "give the questions to score every point on")

    def values(self, examples: int) -> list[int]:
        """The points as numbers, ascending, without duplicates.

        Args:
            examples: the number of training examples, to which larger points are clipped.
        """
        chosen = self.points or POINTS[self.over]
        if self.over != "examples":
            return sorted({int(point) for point in chosen})
        return sorted({examples if point == "all" else min(int(point), examples) for point in chosen})

    def run(self, value: int, output: str) -> RunConfig:
        """The settings of the run at one point, without validation data: the curve uses these for scoring."""
        settings = self.model_dump(exclude={*self.own, "dev", "max_dev", "eval_every", "eval_questions", "patience"})
        settings["output"] = output
        if self.over == "examples":
            settings["max_train"] = value
        elif self.over == "seed":
            settings["seed"] = value
        else:
            settings["lora_r"] = value
            settings["lora_alpha"] = self.lora_alpha if self.alpha_ratio is None else self.alpha_ratio * value
        return RunConfig(**settings)
