"""`jittor-lora evaluate`: answer the questions of a data set and score the answers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Optional

from pydantic import field_validator

from jittor_lora.cli.options import ComputeOptions, DecodingOptions, ModelOptions, add_flags, from_flags, require
from jittor_lora.data.template import DEFAULT_TEMPLATE
from jittor_lora.errors import UserError
from jittor_lora.inference.span_tree import MAX_WORDS
from jittor_lora.settings.base import PATH, TEXT, Problem, setting
from jittor_lora.settings.run import DATA, LARGEST_SEED, LINE_BREAKS, SPECIAL_TOKENS, checked_template
from jittor_lora.system.locks import locked

DECODING = "Decoding"


class EvaluateOptions(DecodingOptions, ComputeOptions, ModelOptions):
    with_base: bool = setting(False, "Model", "score the base without the adapter too, side by side")

    data: Optional[str] = setting(None, DATA, "questions with reference answers: a file of SQuAD v1.1 JSON, JSON Lines "
                                  "or E2E's lines, squad-dev, sample-dev, or e2e-dev", holds=PATH, min_length=1)
    limit: Optional[int] = setting(None, DATA, "a seeded subset of so many questions; by default all", ge=1)
    template: str = setting(DEFAULT_TEMPLATE, DATA, "text of {context}, {question} and {answer}, as trained on; "
                            + LINE_BREAKS, holds=TEXT)
    special_tokens: Literal["text", "token"] = setting("text", DATA, SPECIAL_TOKENS)
    max_tokens: Optional[int] = setting(None, DATA, "longest prompt and answer in tokens; by default what the model "
                                        "can take. The context is cut at its end", ge=8)
    seed: int = setting(42, DATA, "seed of the subset and of the intervals", ge=0, le=LARGEST_SEED)

    batch_size: int = setting(64, DECODING, "questions answered at a time", ge=1)
    max_new_tokens: int = setting(32, DECODING, "longest answer in tokens", ge=1)
    extractive: bool = setting(False, DECODING, "answer with the likeliest of all spans of the context, in place of "
                               "what is generated")
    max_span_words: int = setting(MAX_WORDS, DECODING, "with extractive: longest span in words", ge=1)
    perplexity: bool = setting(False, "Scores", "also measure how likely the model holds the reference answers")

    output: Optional[str] = setting(None, "Output", "folder of predictions.json, metrics.json and the results of each "
                                    "question", holds=PATH, min_length=1)

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return checked_template(value)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.extractive:
            for name in DecodingOptions.model_fields:
                if getattr(self, name) != DecodingOptions.model_fields[name].default:
                    yield Problem((name, "extractive"), "has no effect on spans; leave one of them out")
        elif self.max_span_words != MAX_WORDS:
            yield Problem(("max_span_words", "extractive"), "has no effect without extractive")
        if self.with_base and self.adapter is None:
            yield Problem(("with_base", "adapter"), "without an adapter it is the base that is scored; give --adapter")
        if self.max_tokens is not None and self.max_new_tokens >= self.max_tokens:
            yield Problem(("max_new_tokens", "max_tokens"),
                          f"{self.max_new_tokens} leaves no room for a prompt within max_tokens, {self.max_tokens}")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate", help="exact match and F1 on a data set",
        usage="jittor-lora evaluate --base B [--adapter DIR] --data FILE [--limit N] --output DIR [any flag below]",
        description="Answer the questions of a SQuAD v1.1 file and score the answers with its official exact match and "
                    "F1, with 95 % intervals.")
    add_flags(parser, EvaluateOptions, required=("data", "output"))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, EvaluateOptions)
    require(options, "data", "output")
    if Path(options.output).exists() and not Path(options.output).is_dir():
        raise UserError(f"--output {options.output}: expected a folder, found a file. Name another path.")
    base, adapter = options.base_and_adapter()
    from jittor_lora.tasks.evaluate import Answering, evaluate
    options.set_threads()
    others = {"base", "adapter", "threads", "max_new_tokens", "extractive", "max_span_words", "perplexity"}
    how = Answering(options.decoding(options.max_new_tokens, "\n"), options.extractive, options.max_span_words,
                    options.perplexity)
    with locked(options.output):
        evaluate(base=base, adapter=adapter, how=how,
                 **options.model_dump(exclude={*others, *DecodingOptions.model_fields}))
    return 0
