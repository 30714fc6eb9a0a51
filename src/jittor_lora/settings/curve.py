"""The settings of `curve`: those of a training run, and what is varied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Optional

from pydantic import field_validator

from jittor_lora.settings.base import PATH, Problem, setting
from jittor_lora.settings.run import RunConfig, flag

CURVE = "Curve"
MAX_RANK = 4096
POINTS = {"examples": ("16", "64", "256", "1024", "all"), "rank": ("1", "2", "4", "8", "16", "32", "64")}


class CurveConfig(RunConfig):
    """Runs that differ in one setting: the number of training examples, or the rank."""

    over: Literal["examples", "rank"] = setting("examples", CURVE, "what is varied")
    points: Optional[list[str]] = setting(
        None, CURVE, "its values; by default 16,64,256,1024,all examples, or ranks 1,2,4,8,16,32,64",
        expected="whole numbers above 0, and all for all examples (16,64,all)")
    min_steps: int = setting(100, CURVE, "a run is of at least so many optimiser steps: few examples are read more "
                             "than --epochs times", ge=1)
    extractive: bool = setting(False, CURVE, "answer with the likeliest spans of contexts, see evaluate")
    alpha_ratio: Optional[float] = setting(None, CURVE, "with ranks: alpha is so many times the rank; by default it is "
                                           "lora_alpha at each", gt=0)
    language: Literal["en", "zh"] = setting("en", CURVE, "of the picture's labels")
    font: Optional[str] = setting(None, CURVE, "font file for the picture's labels; by default one is looked for",
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
            raise ValueError(f"expected different whole numbers above 0, and all for all examples, found {value}")
        return value

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.over == "rank" and "all" in (self.points or ()):
            yield Problem(("points", "over"), "ranks are numbers; all is a number of examples")
        if self.over == "rank" and any(point != "all" and int(point) > MAX_RANK for point in self.points or ()):
            yield Problem(("points", "over"), f"ranks are at most {MAX_RANK}")
        if self.over == "rank" and self.method == "full":
            yield Problem(("method", "over"), "full fine-tuning has no rank")
        if self.over == "examples" and self.alpha_ratio is not None:
            yield Problem(("alpha_ratio", "over"), "is about ranks")
        if self.dev is None and self.origin("over") == flag("over"):
            yield Problem(("dev",), "give the questions that every point is scored on")

    def values(self, examples: int) -> list[int]:
        """The points as numbers, ascending, each once.

        Args:
            examples: how many there are in all; more is all of them.
        """
        chosen = self.points or POINTS[self.over]
        if self.over == "rank":
            return sorted({int(point) for point in chosen})
        return sorted({examples if point == "all" else min(int(point), examples) for point in chosen})

    def run(self, value: int, output: str) -> RunConfig:
        """The settings of the run at one point. It has no validation data: the curve's are for its scores."""
        settings = self.model_dump(exclude={*self.own, "dev", "max_dev", "eval_every", "eval_questions", "patience"})
        settings["output"] = output
        if self.over == "examples":
            settings["max_train"] = value
        else:
            settings["lora_r"] = value
            settings["lora_alpha"] = self.lora_alpha if self.alpha_ratio is None else self.alpha_ratio * value
        return RunConfig(**settings)
