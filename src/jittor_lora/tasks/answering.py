"""Answering questions: generated texts, the best of several samples, or spans of the context."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from jittor_lora.errors import UserError
from jittor_lora.evaluation.minimum_risk import highest_expected_f1
from jittor_lora.evaluation.no_answer import thresholded
from jittor_lora.inference.extraction import Candidates, Extract, Extractor, finite
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.settings.shared import SPAN_TEMPERATURE
from jittor_lora.system.pace import Pace
from jittor_lora.system.ranks import ALONE, Ranks
from jittor_lora.system.waiting import silence_explained
from jittor_lora.tasks.questions import Questions

BATCH_SIZE = 64
LINE_SECONDS = 30.0  # between lines of progress where the screen is not a terminal


@dataclass(frozen=True)
class Answering:
    """How questions are answered, and what else is measured.

    Args:
        decoding: of generated answers; by default greedy to the end of the line.
        extractive: answers are spans of the context instead, see `inference/extraction.py`.
        candidates: the answer is the one with the highest expected F1 of this many: the likeliest spans, or else
            samples; None for the likeliest span, or the text as decoded.
        span_temperature: of these spans' probabilities, see `Candidates`.
        label_smoothing: that the model was trained with; spans' probabilities are corrected for it, see
            `before_smoothing`.
        max_span_words: of such a span, see `spans_of`.
        perplexity: also measure the likelihood of the reference answers.
        no_answer_threshold: where questions may have no answer, odds above it give the empty answer.
    """

    decoding: Decoding | None = None
    extractive: bool = False
    max_span_words: int | None = None
    perplexity: bool = False
    no_answer_threshold: float = 0.0
    candidates: int | None = None
    span_temperature: float = SPAN_TEMPERATURE
    label_smoothing: float = 0.0

    @property
    def samples(self) -> bool:
        """Are answers drawn at random?"""
        return self.candidates is not None and not self.extractive or bool(
            self.decoding and self.decoding.sampling.temperature > 0)


GREEDY = Answering()


@dataclass(frozen=True)
class Answers:
    """Answers to questions, all by question id.

    Attributes:
        texts: empty for no answer.
        raw: where questions may have no answer, the answers regardless of that; else empty.
        null_odds: of those, how much likelier no answer is, in nats: for generated answers the log-odds that the text
            ends at once, for spans the difference in log-probability between the empty answer and the span; with the
            highest expected F1, the logarithm of the ratio of the two answers' expected F1.
        spans: of extractive answers.
        expected_f1: of answers chosen by it, given that there is an answer.
    """

    texts: dict[str, str]
    raw: Mapping[str, str] = field(default_factory=dict)
    null_odds: Mapping[str, float] = field(default_factory=dict)
    spans: Mapping[str, Extract] = field(default_factory=dict)
    expected_f1: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def above(cls, raw: dict[str, str], null_odds: Mapping[str, float], threshold: float,
              spans: Mapping[str, Extract] | None = None, expected_f1: Mapping[str, float] | None = None) -> Answers:
        return cls(thresholded(raw, null_odds, threshold), raw, null_odds, spans or {}, expected_f1 or {})


def answer(generator: Generator, questions: Questions, batch_size: int = BATCH_SIZE,
           progress: str | None = None, decoding: Decoding | None = None, ranks: Ranks = ALONE,
           threshold: float = 0.0) -> Answers:
    """Generated answers; by default greedy, of questions about a context to the end of the line.

    Args:
        batch_size: most questions, or beams, answered at a time.
        progress: name under which progress is shown on standard error; None shows nothing.
        ranks: each answers the questions of some contexts, and all get all answers.
        threshold: see `Answering`; with beams a question has no answer where the best text is empty.
    """
    decoding, every = decoding or Decoding(questions.max_new_tokens, stop=questions.stop), questions.ids
    questions = dataclasses.replace(questions, groups=ranks.share(questions.groups))
    names, odds = questions.ids, {}

    def measured(index: int, value: float) -> None:
        odds[names[index]] = value

    with counting(len(names), progress, batch_size) as answered:
        texts = generator.continue_groups(
            questions.prompts(), decoding, trim=True, on_end=lambda _: answered(), batch_size=batch_size,
            on_null_odds=measured if questions.no_answers and decoding.beams is None else None) if names else []
    found = {name: (text.strip(), odds.get(name)) for name, text in zip(names, texts)}
    found = in_order(every, ranks.all_gather(found))
    texts = {name: text for name, (text, _) in found.items()}
    if not questions.no_answers or decoding.beams is not None:
        return Answers(texts)
    return Answers.above(texts, {name: value for name, (_, value) in found.items()}, threshold)


def answer_from_samples(generator: Generator, questions: Questions, count: int, batch_size: int = BATCH_SIZE,
                        progress: str | None = None, decoding: Decoding | None = None, threshold: float = 0.0,
                        seed: int = 0) -> Answers:
    """Of `count` samples per question, at temperature 1, the one with the highest expected F1 over all of them; further
    arguments as in `answer`.

    Where questions may have no answer, samples are of texts that do not end at once, whose probability is known.

    Args:
        decoding: of the samples, without beams.
        seed: of the samples.
    """
    decoding = decoding or Decoding(questions.max_new_tokens, stop=questions.stop)
    sampling = dataclasses.replace(decoding.sampling, temperature=1.0, seed=seed)
    decoding = dataclasses.replace(decoding, sampling=sampling)
    names, odds, left = questions.ids, {}, [count] * len(questions.ids)

    def measured(index: int, value: float) -> None:
        odds[names[index // count]] = value

    def ended(index: int) -> None:
        left[index // count] -= 1
        if not left[index // count]:
            answered()

    groups = [(prefix, [prompt for prompt in prompts for _ in range(count)]) for prefix, prompts in questions.prompts()]
    with counting(len(names), progress, max(1, batch_size // count)) as answered:
        texts = generator.continue_groups(groups, decoding, trim=True, on_end=ended, batch_size=batch_size,
                                          on_null_odds=measured if questions.no_answers else None)
    chosen, expected = {}, {}
    for at, name in enumerate(names):
        samples = Counter(text.strip() for text in texts[at * count : (at + 1) * count])
        found = highest_expected_f1(list(samples), list(samples.values()), questions.scoring)
        chosen[name], expected[name] = list(samples)[found.index], found.expected_f1
    if not questions.no_answers:
        return Answers(chosen, expected_f1=expected)
    odds = {name: finite(odds[name] - (math.log(value) if value else -math.inf)) for name, value in expected.items()}
    return Answers.above(chosen, odds, threshold, expected_f1=expected)


def in_order(names: Sequence[str], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The union of mappings, in the order of `names`."""
    whole = {name: value for part in parts for name, value in part.items()}
    return {name: whole[name] for name in names}


def extract(generator: Generator, questions: Questions, max_words: int | None = None, batch_size: int = BATCH_SIZE,
            progress: str | None = None, ranks: Ranks = ALONE, threshold: float = 0.0,
            candidates: Candidates | None = None, smoothing: float = 0.0) -> Answers:
    """Answers that are spans of the context, the likeliest or of candidates the one with the highest expected F1;
    further arguments as in `answer`.

    Args:
        smoothing: see `Extractor`.

    Raises:
        UserError: the data has no contexts.
    """
    if not questions.contexts:
        raise UserError("--extractive takes answers from contexts, but these prompts have none. Give SQuAD JSON, "
                        "or leave out --extractive.")
    every = questions.ids
    questions = dataclasses.replace(questions, groups=ranks.share(questions.groups))
    groups = [(group.prefix, [branch.prompt for branch in group.branches], questions.contexts[group.branches[0].id])
              for group in questions.groups]
    extractor = Extractor(generator.model, generator.tokenizer, generator.encoder.template, generator.ensemble,
                          smoothing)
    with counting(len(questions.ids), progress, batch_size) as answered:
        found = extractor.extract(groups, questions.max_new_tokens, max_words, batch_size, lambda _: answered(),
                                  candidates)
    found = ranks.all_gather(dict(zip(questions.ids, found)))
    spans = in_order(every, [{name: Extract(*span) for name, span in part.items()} for part in found])
    texts = {name: span.text for name, span in spans.items()}
    expected = {name: span.expected_f1 for name, span in spans.items() if span.expected_f1 is not None}
    if not questions.no_answers:
        return Answers(texts, spans=spans, expected_f1=expected)
    return Answers.above(texts, {name: span.null_odds for name, span in spans.items()}, threshold, spans, expected)


@contextmanager
def counting(total: int, name: str | None, together: int) -> Iterator[Callable[[], None]]:
    """A function to call after each answered question: shows a bar on a terminal, elsewhere a line now and then.

    Args:
        together: questions answered at a time. They are all read before the first is answered, so the time left is
            estimated from the speed of later ones.
    """
    terminal, started, done = sys.stderr.isatty(), time.monotonic(), 0
    shown, pace = started, Pace(apart=together, least=max(2, together // 4))

    def answered() -> None:
        nonlocal done, shown
        first_one()
        pace.note()
        done, now = done + 1, time.monotonic()
        figures = f"{done / max(now - started, 1e-9):.1f} questions/s{pace.left(total - done)}"
        bar.set_postfix_str(figures, refresh=False)
        bar.update()
        if name is not None and not terminal and (done == total or now - shown >= LINE_SECONDS):
            shown = now
            say(f"{name}: {done:,} of {total:,} questions, {figures}")

    hidden = name is None or not terminal
    from jittor_lora.inference.readers import first_texts  # imports Jittor
    with silence_explained(first_texts(), wanted=name is not None) as first_one, \
            tqdm(total=total, desc=name, file=sys.stderr, disable=hidden, dynamic_ncols=True,
                 bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]") as bar:
        yield answered


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
