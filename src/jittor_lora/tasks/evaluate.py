"""Answering the questions of a data set, and scoring the answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jittor_lora.data.examples import Data, LengthReport, TokenGroup, prompt_groups
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.evaluation.compare import comparison_table
from jittor_lora.evaluation.metrics import summarize, write_metrics
from jittor_lora.evaluation.predictions import write_predictions, write_question_scores
from jittor_lora.evaluation.squad import SquadScore, score
from jittor_lora.files import make_writable
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.generation import Decoding, Generator
from jittor_lora.loading import load
from jittor_lora.waiting import silence_explained

MAX_NEW_TOKENS = 32
BATCH_SIZE = 64
LINE_SECONDS = 30.0  # between lines of progress where the screen is not a terminal


@dataclass(frozen=True)
class Questions:
    """Prompts to answer, and what the answers are compared with.

    Attributes:
        groups: tokenised prompts, questions of one context together.
        references: id → accepted answers, also of questions that were dropped.
        report: what was cut.
        max_new_tokens: room left for each answer.
    """

    groups: list[TokenGroup]
    references: dict[str, list[str]]
    report: LengthReport
    max_new_tokens: int

    @classmethod
    def of(cls, data: Data, tokenizer: Tokenizer, template: Template, limit: int,
           max_new_tokens: int = MAX_NEW_TOKENS) -> Questions:
        """
        Args:
            limit: longest prompt and answer together, in tokens.

        Raises:
            UserError: no prompt fits.
        """
        if max_new_tokens >= limit:
            raise UserError(f"max_new_tokens: {max_new_tokens} leaves no room for a prompt within {limit} tokens.")
        groups, report = prompt_groups(data, tokenizer, template, limit - max_new_tokens)
        return cls(groups, data.references(), report, max_new_tokens)


def answer(generator: Generator, questions: Questions, batch_size: int = BATCH_SIZE,
           progress: str | None = None) -> dict[str, str]:
    """Greedy answers to the end of the line, by question id.

    Args:
        batch_size: most questions that are answered at a time.
        progress: name under which progress is shown on standard error; none without it.
    """
    decoding = Decoding(questions.max_new_tokens, stop="\n")
    ids = [branch.id for group in questions.groups for branch in group.branches]
    groups = [(group.prefix, [branch.prompt for branch in group.branches]) for group in questions.groups]
    with counting(len(ids), progress) as answered:
        texts = generator.continue_groups(groups, decoding, trim=True, on_end=lambda _: answered(1), rows=batch_size)
    return {name: text.strip() for name, text in zip(ids, texts)}


@contextmanager
def counting(total: int, name: str | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of questions answered since: a bar on a terminal, a line now and then else."""
    terminal, started, done = sys.stderr.isatty(), time.monotonic(), 0
    shown = started

    def answered(count: int) -> None:
        nonlocal done, shown
        first_one()
        bar.update(count)
        done, now = done + count, time.monotonic()
        if name is not None and not terminal and (done == total or now - shown >= LINE_SECONDS):
            shown = now
            say(f"{name}: {done:,} of {total:,} questions, {done / (now - started):.1f} a second")

    hidden = name is None or not terminal
    with silence_explained(wanted=name is not None) as first_one, \
            tqdm(total=total, desc=name, unit=" questions", file=sys.stderr, disable=hidden) as bar:
        yield answered


def evaluate(base: str, data: str, output: str, adapter: Path | None = None, with_base: bool = False,
             limit: int | None = None, template: str | None = None, max_tokens: int | None = None, seed: int = 42,
             batch_size: int = BATCH_SIZE, max_new_tokens: int = MAX_NEW_TOKENS,
             precision: str = "fp32") -> dict[str, SquadScore]:
    """Score a base, or a base with an adapter, or both side by side, on a data set.

    Leaves in `output` predictions.json, metrics.json and questions.jsonl; with `with_base` those of the base are in
    `output/base`.

    Returns: the scores of "adapter" and of "base", as far as they were asked for.
    """
    questions_data = load_data(data, "dev", "evaluation")
    if limit is not None:
        questions_data = questions_data.subset(limit, seed)
    loaded = load(base, adapter, precision)
    longest = min(loaded.model.config.max_positions, max_tokens or sys.maxsize)
    questions = Questions.of(questions_data, loaded.tokenizer, Template(template) if template else Template(), longest,
                             max_new_tokens)
    make_writable(output)
    say(f"{questions_data.path}: {describe_data(questions_data)}")
    say(f"Base: {loaded.base.description}")
    if adapter:
        say(f"Adapter: {adapter}")
    for line in questions.report.lines():
        say(line)
    generator, scores = Generator(loaded.model, loaded.tokenizer), {}
    if loaded.adapter and with_base:
        with loaded.adapters_off():
            scores["base"] = score_and_write(generator, questions, Path(output, "base"), "base", seed, batch_size)
    name = "adapter" if loaded.adapter else "base"
    scores[name] = score_and_write(generator, questions, Path(output), name, seed, batch_size)
    if len(scores) == 2:
        say(comparison_table(scores["base"], scores["adapter"], seed=seed))
    else:
        found = summarize(scores[name], seed)
        say(f"EM {found.exact_match:.2f} {brackets(found.exact_match_interval)}, "
            f"F1 {found.f1:.2f} {brackets(found.f1_interval)}, {found.count} questions (percent, 95 % intervals)")
    say(f"Predictions and scores: {output}")
    return scores


def score_and_write(generator: Generator, questions: Questions, folder: Path, name: str, seed: int,
                    batch_size: int = BATCH_SIZE) -> SquadScore:
    """Answer, score, and leave predictions.json, questions.jsonl and metrics.json in `folder`."""
    predictions = answer(generator, questions, batch_size, name)
    found = score(questions.references, predictions)
    write_predictions(folder / "predictions.json", predictions)
    write_question_scores(folder / "questions.jsonl", found, questions.references)
    write_metrics(folder / "metrics.json", summarize(found, seed))
    return found


def brackets(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
