"""`jittor-lora compare`: several systems on the same questions, with one report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Optional

from jittor_lora.cli.arguments import find_adapter, named_path_argument
from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, Settings, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.shared import (
    DATA,
    LARGEST_SEED,
    BasePrecision,
    ChatArguments,
    Columns,
    OptionalTemplateText,
    Scoring,
    SpecialTokens,
    TextScores,
    base_precision_setting,
    chat_arguments_setting,
    chat_template_setting,
    columns_setting,
    own_special_tokens_setting,
    own_template_setting,
    scoring_setting,
    text_scores_setting,
)
from jittor_lora.settings.text import list_of, names
from jittor_lora.system.locks import locked

ANSWERING = "New answers"
PRECISIONS, MODES = ("fp32", "tf32", "bf16"), ("greedy", "extractive", "sampled-f1", "extractive-f1")

Precisions = Annotated[str, list_of(PRECISIONS)]
Modes = Annotated[str, list_of(MODES)]


class CompareOptions(Settings):
    data: Optional[str] = setting(None, DATA, "questions with reference answers: a file (JSON, CSV, parquet), "
                                  "hub:organisation/name, squad-dev, sample-dev, e2e-dev, webnlg-dev or "
                                  "dart-test", holds=PATH,
                                  min_length=1)
    columns: Columns = columns_setting()
    limit: Optional[int] = setting(None, DATA, "use a seeded subset of N questions; by default all", ge=1)
    train_data: Optional[str] = setting(None, DATA, "training data: report which questions occur in it", holds=PATH,
                                        min_length=1)
    seed: int = setting(42, DATA, "seed for the subset, the intervals and the tests", ge=0, le=LARGEST_SEED)
    against: Optional[str] = setting(None, DATA, "name of the system to compare the others with; by default the first",
                                     min_length=1)

    scoring: Scoring = scoring_setting(DATA)
    text_scores: TextScores = text_scores_setting(DATA)
    official: bool = setting(False, DATA, "score questions that no system answered as 0, by SQuAD's official rule; by "
                             "default they are left out")

    base: Optional[str] = setting(None, ANSWERING, "base model, as in evaluate; by default that of the first adapter",
                                  holds=PATH, min_length=1)
    with_base: bool = setting(True, ANSWERING, "also answer with the base without an adapter")
    precisions: Precisions = setting("bf16", ANSWERING, "fp32, tf32 (on a GPU), bf16, or several of them (fp32,bf16)")
    base_precision: BasePrecision = base_precision_setting(ANSWERING)
    modes: Modes = setting("greedy", ANSWERING, "greedy, extractive (the likeliest span of the context), "
                         "sampled-f1 and extractive-f1 (the highest expected F1 of samples or spans, see evaluate "
                         "--aim), or several of them (greedy,extractive)")
    template: OptionalTemplateText = own_template_setting(ANSWERING)
    chat_template: Optional[str] = chat_template_setting(ANSWERING, "that of the adapter's training, else the base's")
    chat_arguments: ChatArguments = chat_arguments_setting(ANSWERING)
    special_tokens: Optional[SpecialTokens] = own_special_tokens_setting(ANSWERING)
    max_tokens: Optional[int] = setting(None, ANSWERING, "maximum length of prompt and answer in tokens; by default "
                                        "the model's", ge=8)
    max_new_tokens: Optional[int] = setting(None, ANSWERING, "maximum length of an answer in tokens; by default 32, in "
                                            "conversations 256", ge=1)
    batch_size: int = setting(64, ANSWERING, "questions per batch", ge=1)
    threads: Optional[int] = setting(None, ANSWERING, "processor threads; by default one per core", ge=1)

    output: Optional[str] = setting(None, "Output", "folder for report.html, comparison.json, plots and answers",
                                    holds=PATH, min_length=1)
    title: Optional[str] = setting(None, "Output", "title of the report; by default the systems' names", min_length=1)
    language: Literal["en", "zh"] = setting("en", "Output", "language of the plots' labels")
    font: Optional[str] = setting(None, "Output", "font file for the plots' labels; by default an installed font",
                                  holds=PATH, min_length=1)

    def conflicts(self) -> Iterator[Problem]:
        if None not in (self.max_tokens, self.max_new_tokens) and self.max_new_tokens >= self.max_tokens:
            yield Problem(("max_new_tokens", "max_tokens"),
                          f"{self.max_new_tokens} leaves no room for a prompt within max_tokens, {self.max_tokens}")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "compare", help="compare several systems on the same questions, with a report",
        usage="jittor-lora compare [[NAME=]PREDICTIONS …] [--base B] [--adapters [NAME=]DIR …] --data FILE "
              "--output DIR [any flag below]",
        description="Compare the answers of several systems to the same questions: existing predictions, new answers "
                    "from a base and adapters, or both. Writes a table with paired tests, scores by kind of question, "
                    "plots, and one HTML page with all predictions.")
    systems = parser.add_argument_group("Systems")
    systems.add_argument("predictions", metavar="[NAME=]PREDICTIONS", nargs="*", type=named_path_argument,
                         help="existing predictions: a prediction file, the output folder of evaluate, or a run folder "
                         "with evaluations. A NAME given several times is one system trained with several seeds")
    systems.add_argument("--adapters", metavar="[NAME=]DIR", nargs="+", default=[], type=named_path_argument,
                         help="answer with each of these adapters (folders in PEFT's layout, or run folders)")
    add_flags(parser, CompareOptions, required=("data", "output"))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, CompareOptions)
    require(options, "data", "output")
    if not args.predictions and not args.adapters and options.base is None:
        raise UserError("nothing to compare: expected PREDICTIONS, --base B or --adapters DIR …")
    if Path(options.output).exists() and not Path(options.output).is_dir():
        raise UserError(f"--output {options.output}: expected a folder, found a file. Name another path.")
    from jittor_lora.evaluation.systems import is_named, named_folders, numbered
    predictions, runs = numbered([(*found, is_named(argument)) for argument in args.predictions
                                  for found in named_folders(argument)])
    adapters, trained = numbered([(*named_adapter(argument), is_named(argument)) for argument in args.adapters])
    from jittor_lora.tasks.compare import Evaluation, compare
    evaluation = None
    if adapters or options.base is not None:
        from jittor_lora.formats.base_record import base_of_adapter
        evaluation = Evaluation(options.base or base_of_adapter(adapters[0][1]), adapters, options.with_base,
                                names(options.precisions), names(options.modes), options.template,
                                options.max_tokens, options.max_new_tokens, options.batch_size,
                                options.special_tokens, options.chat_template, options.chat_arguments,
                                options.base_precision)
        runs = {**evaluation.runs(trained), **runs}
        if options.threads:
            from jittor_lora.system.runtime import set_threads
            set_threads(options.threads)
    with locked(options.output):
        compare(options.data, options.output, predictions, evaluation, options.train_data, options.limit,
                options.against, options.seed, options.title, options.language, options.font, options.official,
                options.columns, options.scoring, options.text_scores, runs)
    return 0


def named_adapter(argument: str) -> tuple[str, Path]:
    """(name, folder of the files) of `[NAME=]DIR`; by default an adapter in a run folder is named after the run.

    Raises:
        UserError: no adapter was found.
    """
    name, divider, path = argument.partition("=")
    if Path(argument).exists() or not divider:
        name, path = "", argument
    folder = find_adapter(path, "--adapters ")
    own = folder.resolve()
    return name or (own.parent.name if own.name == "adapter" else own.name), folder
