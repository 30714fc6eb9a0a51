"""`jittor-lora evaluate`: answer the questions of a data set and score the answers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Optional

from jittor_lora.cli.ensemble import add_ensemble, further_adapters
from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.cli.options import ComputeOptions, DecodingOptions, ModelOptions
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.shared import (
    CANDIDATES,
    DATA,
    LARGEST_SEED,
    SPAN_TEMPERATURE,
    ChatArguments,
    Columns,
    OptionalTemplateText,
    Scoring,
    SpecialTokens,
    TextScores,
    chat_arguments_setting,
    chat_template_setting,
    columns_setting,
    own_special_tokens_setting,
    own_template_setting,
    scoring_setting,
    text_scores_setting,
)
from jittor_lora.system.locks import locked

DECODING = "Decoding"


class EvaluateOptions(DecodingOptions, ComputeOptions, ModelOptions):
    with_base: bool = setting(False, "Model", "also score the base without the adapter")

    data: Optional[str] = setting(None, DATA, "questions with reference answers: a file (JSON, CSV, parquet), "
                                  "hub:organisation/name, squad-dev, sample-dev, e2e-dev, webnlg-dev or "
                                  "dart-test", holds=PATH,
                                  min_length=1)
    columns: Columns = columns_setting()
    limit: Optional[int] = setting(None, DATA, "use a seeded subset of N questions; by default all", ge=1)
    template: OptionalTemplateText = own_template_setting(DATA)
    chat_template: Optional[str] = chat_template_setting(DATA, "that of the adapter's training, else the base's")
    chat_arguments: ChatArguments = chat_arguments_setting(DATA)
    special_tokens: Optional[SpecialTokens] = own_special_tokens_setting(DATA)
    max_tokens: Optional[int] = setting(None, DATA, "maximum length of prompt and answer in tokens; by default the "
                                        "model's. Longer contexts are cut at the end", ge=8)
    seed: int = setting(42, DATA, "seed for the subset, the intervals and samples", ge=0, le=LARGEST_SEED)

    batch_size: int = setting(64, DECODING, "questions per batch", ge=1)
    max_new_tokens: Optional[int] = setting(None, DECODING, "maximum length of an answer in tokens; by default 32, in "
                                            "conversations 256", ge=1)
    extractive: bool = setting(False, DECODING, "answer with the likeliest span of the context instead of generating "
                               "text")
    aim: Literal["likeliest", "f1"] = setting(
        "likeliest", DECODING, "the likeliest answer, or the one with the highest expected F1 (f1) of several: the "
        "likeliest spans with --extractive, otherwise samples")
    candidates: Optional[int] = setting(None, DECODING, "with --aim f1: number of spans, or of samples; by default "
                                        f"{CANDIDATES}", ge=2, le=1000)
    span_temperature: Optional[float] = setting(None, DECODING, "with --extractive --aim f1: take spans' probabilities "
                                                f"to the power of 1 / this; by default {SPAN_TEMPERATURE:g}", gt=0)
    label_smoothing: Optional[float] = setting(
        None, DECODING, "with --extractive: label smoothing of the training, for which spans' probabilities "
        "are corrected; by default as the adapter or the base records it", ge=0, lt=1)
    max_span_words: Optional[int] = setting(None, DECODING, "with --extractive: maximum length of a span in words, or "
                                            "characters of Chinese; by default 16, in Chinese contexts 40", ge=1)
    no_answer_threshold: float = setting(0.0, DECODING, "where questions may have no answer: give none if the odds of "
                                         "that, in nats, exceed this")
    scoring: Scoring = scoring_setting("Scores")
    text_scores: TextScores = text_scores_setting("Scores")
    perplexity: bool = setting(False, "Scores", "also compute the perplexity of the reference answers")

    output: Optional[str] = setting(None, "Output", "folder for predictions.json, metrics.json and the results per "
                                    "question", holds=PATH, min_length=1)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.extractive:
            for name in DecodingOptions.model_fields:
                if getattr(self, name) != DecodingOptions.model_fields[name].default:
                    yield Problem((name, "extractive"), "has no effect on spans; leave one of the two out")
        else:
            for name in ("max_span_words", "label_smoothing"):
                if getattr(self, name) is not None:
                    yield Problem((name, "extractive"), "has no effect without extractive")
        if self.aim == "f1" and self.beams > 1 and not self.extractive:
            yield Problem(("aim", "beams"), "the candidates are samples; leave one of the two out")
        if self.aim != "f1" and self.candidates is not None:
            yield Problem(("candidates", "aim"), "has no effect unless aim is f1")
        if not (self.aim == "f1" and self.extractive) and self.span_temperature is not None:
            yield Problem(("span_temperature", "aim"), "has no effect without extractive and aim f1")
        if self.no_answer_threshold and self.beams > 1:
            yield Problem(("no_answer_threshold", "beams"), "beam search gives no odds of no answer")
        if self.with_base and self.adapter is None:
            yield Problem(("with_base", "adapter"), "without an adapter only the base is scored; give --adapter")
        if None not in (self.max_tokens, self.max_new_tokens) and self.max_new_tokens >= self.max_tokens:
            yield Problem(("max_new_tokens", "max_tokens"),
                          f"{self.max_new_tokens} leaves no room for a prompt within max_tokens, {self.max_tokens}")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate", help="score answers on a data set by exact match and F1",
        usage="jittor-lora evaluate --base B [--adapter DIR] --data FILE [--limit N] --output DIR [any flag below]",
        description="Answer the questions of a SQuAD file (v1.1, v2, CMRC 2018, DRCD) and score the answers with its "
                    "official exact match and F1, with 95 % intervals.")
    add_ensemble(parser)
    add_flags(parser, EvaluateOptions, required=("data", "output"))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, EvaluateOptions)
    require(options, "data", "output")
    if Path(options.output).exists() and not Path(options.output).is_dir():
        raise UserError(f"--output {options.output}: expected a folder, found a file. Name another path.")
    base, adapter = options.base_and_adapter()
    ensemble = further_adapters(args, options)
    if ensemble and options.perplexity:
        raise UserError("--ensemble, --perplexity: the perplexity is that of one adapter; leave one of the two out.")
    from jittor_lora.tasks.answering import Answering
    from jittor_lora.tasks.evaluate import evaluate
    options.set_threads()
    others = {"base", "adapter", "threads", "max_new_tokens", "extractive", "max_span_words", "perplexity",
              "no_answer_threshold", "aim", "candidates", "span_temperature"}
    how = Answering(options.decoding(options.max_new_tokens, "\n"), options.extractive, options.max_span_words,
                    options.perplexity, options.no_answer_threshold,
                    (options.candidates or CANDIDATES) if options.aim == "f1" else None,
                    options.span_temperature or SPAN_TEMPERATURE)
    with locked(options.output):
        evaluate(base=base, adapter=adapter, ensemble=ensemble, how=how,
                 **options.model_dump(exclude={*others, *DecodingOptions.model_fields}))
    return 0
