"""Answering the questions of a data set, and scoring the answers."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from jittor_lora import __version__
from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.chat_faults import ChatFaults
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.examples import Data, prompt_groups, training_groups
from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.length_report import LengthReport
from jittor_lora.data.prompting import Choices
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.data.special_tokens import special_token_lines, texts_of
from jittor_lora.data.squad import SquadData
from jittor_lora.data.stream import micro_batches
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.evaluation.compare import comparison_table
from jittor_lora.evaluation.metrics import summarize, write_metrics
from jittor_lora.evaluation.minimum_risk import highest_expected_f1
from jittor_lora.evaluation.no_answer import figures, figures_line, thresholded
from jittor_lora.evaluation.predictions import write_predictions, write_question_scores
from jittor_lora.evaluation.scoring import AUTO, SquadScore, chosen_rule, rule_line, score
from jittor_lora.evaluation.text import ALL, INTERVAL, chosen_evaluation, groups_of, scores_by_group
from jittor_lora.files.atomic import atomic_write, make_writable, write_json, written_together
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.hugging_face import sampling_lines
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.inference.extraction import Candidates, Extract, Extractor, finite
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.session import load
from jittor_lora.settings.shared import SPAN_TEMPERATURE
from jittor_lora.system.pace import Pace
from jittor_lora.system.ranks import ALONE, Ranks, join
from jittor_lora.system.waiting import silence_explained

MAX_NEW_TOKENS, MAX_NEW_CHAT_TOKENS = 32, 256
BATCH_SIZE = 64
TOKENS_AT_A_TIME = 1024  # of reference answers with their prompts
LINE_SECONDS = 30.0  # between lines of progress where the screen is not a terminal


@dataclass(frozen=True)
class Questions:
    """Prompts to answer, and what the answers are compared with.

    Attributes:
        groups: tokenised prompts, questions of one context together.
        references: id → accepted answers, including those of dropped questions.
        report: what was cut.
        max_new_tokens: room left for each answer.
        contexts: id → the whole context, for questions that have one.
        places: id → where it is in the data, see `SquadData.places`.
        stop: text that ends a generated answer, besides end of text.
        scoring: the rule, see `evaluation/scoring.py`.
        no_answers: whether some may have no answer.
        text_scores: the scores of answers that are whole texts, see `evaluation/text.py`.
        parts: name → ids of those that get these scores by themselves too.
    """

    groups: list[TokenGroup]
    references: dict[str, list[str]]
    report: LengthReport
    max_new_tokens: int
    contexts: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stop: str | None = "\n"
    scoring: str = "squad"
    no_answers: bool = False
    text_scores: str = "e2e"
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Data, tokenizer: Tokenizer, template: Template, limit: int,
           max_new_tokens: int | None = None, scoring: str = AUTO, chat: ChatEncoder | None = None,
           text_scores: str = AUTO) -> Questions:
        """
        Args:
            limit: of prompt and answer together, in tokens.
            max_new_tokens: room left for each answer; by default 32, of conversations 256, or half the limit.
            scoring, text_scores: the rule and the scores of texts, or "auto" for those that the data ask for.
            chat: encodes conversations, whose last answers are the references.

        Raises:
            UserError: no prompt fits, the template refuses conversations, or the rule does not suit the data.
        """
        rule, talks = chosen_rule(scoring, data), isinstance(data, ConversationData)
        if max_new_tokens is None:
            max_new_tokens = min(MAX_NEW_CHAT_TOKENS if talks else MAX_NEW_TOKENS, max(limit // 2, 1))
        if max_new_tokens >= limit:
            raise UserError(f"max_new_tokens: {max_new_tokens} leaves no room for a prompt within {limit} tokens.")
        groups, report = prompt_groups(data, tokenizer, template, limit - max_new_tokens, chat)
        if report.faults:
            raise ChatFaults(report.faults)
        paragraphs = data.paragraphs if isinstance(data, SquadData) else ()
        contexts = {question.id: paragraph.context for paragraph in paragraphs for question in paragraph.questions}
        return cls(groups, data.references(), report, max_new_tokens, contexts, data.places(), None if talks else "\n",
                   rule, rule == "squad-v2" or isinstance(data, SquadData) and data.no_answers,
                   chosen_evaluation(text_scores, data), groups_of(data))

    def score(self, predictions: Mapping[str, str]) -> SquadScore:
        """Scores of answers by question id."""
        return score(self.references, predictions, self.places, self.scoring)

    @property
    def ids(self) -> list[str]:
        """Ids of the prompts, group by group."""
        return [branch.id for group in self.groups for branch in group.branches]

    def prompts(self) -> list[tuple[list[int], list[list[int]]]]:
        return [(group.prefix, [branch.prompt for branch in group.branches]) for group in self.groups]


@dataclass(frozen=True)
class Answering:
    """How questions are answered, and what else is measured.

    Args:
        decoding: of generated answers; by default greedy to the end of the line.
        extractive: answers are spans of the context instead, see `inference/extraction.py`.
        candidates: the answer is the one with the highest expected F1 of this many: the likeliest spans, or else
            samples; None for the likeliest span, or the text as decoded.
        span_temperature: of these spans' probabilities, see `Candidates`.
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

    @property
    def samples(self) -> bool:
        """Are answers drawn at random?"""
        return self.candidates is not None and not self.extractive or bool(
            self.decoding and self.decoding.sampling.temperature > 0)


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
            candidates: Candidates | None = None) -> Answers:
    """Answers that are spans of the context, the likeliest or of candidates the one with the highest expected F1;
    further arguments as in `answer`.

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
    extractor = Extractor(generator.model, generator.tokenizer, generator.encoder.template)
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


def too_short_line(references: Mapping[str, Sequence[str]], generator: Generator, most: int) -> str | None:
    """A sentence on the questions whose reference answers are all longer than `most` tokens, if there are any."""
    texts = list(dict.fromkeys(text for answers in references.values() for text in answers))
    longer = {text for text, ids in zip(texts, generator.encoder.answers(texts)) if ids is not None and len(ids) > most}
    count = sum(bool(answers) and longer.issuperset(answers) for answers in references.values())
    if not count:
        return None
    return (f"{count:,} of {len(references):,} questions have no reference answer of at most {most} tokens, the limit; "
            "raise it with --max-new-tokens")


def answer_loss(model, groups: Sequence[TokenGroup], ranks: Ranks = ALONE) -> float:
    """The mean loss per token, in nats, of reference answers with their end, given their prompts."""
    from jittor_lora.training.gradients import mean_loss
    return mean_loss(model, micro_batches(groups, max(TOKENS_AT_A_TIME, max(map(longest_text, groups)))), ranks)


def longest_text(group: TokenGroup) -> int:
    return len(group.prefix) + max(len(one.prompt) + len(one.completion)
                                   for branch in group.branches for one in branch.all)


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
    with silence_explained(wanted=name is not None) as first_one, \
            tqdm(total=total, desc=name, file=sys.stderr, disable=hidden, dynamic_ncols=True,
                 bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]") as bar:
        yield answered


def evaluate(base: str, data: str, output: str, adapter: Path | AdapterSource | None = None,
             with_base: bool = False, limit: int | None = None, template: str | None = None,
             max_tokens: int | None = None, seed: int = 42, batch_size: int = BATCH_SIZE, how: Answering = Answering(),
             precision: str = "fp32", special_tokens: str | None = None, columns: Mapping[str, str] | None = None,
             chat_template: str | None = None, chat_arguments: Mapping[str, Any] | None = None,
             scoring: str = AUTO, text_scores: str = AUTO, base_precision: str = "auto") -> dict[str, SquadScore]:
    """Score a base, or a base with an adapter, or both side by side, on a data set.

    Leaves predictions.json, metrics.json and questions.jsonl in `output`, and spans.jsonl for extractive answers; with
    `with_base` those of the base are in `output/base`. Where questions may have no answer, see `score_and_write`. Under
    mpirun all ranks call this together and share the questions; only the first writes.

    Returns: the scores of "adapter" and "base", as requested.
    """
    ranks = join()
    if ranks.size > 1 and how.samples:
        raise UserError("Under mpirun: expected answers that are not sampled, as samples depend on which questions a "
                        f"process answers; found {'aim f1 without extractive' if how.candidates else 'a temperature'}. "
                        "Change that, or evaluate without mpirun.")
    questions_data = load_data(data, "dev", "evaluation", columns=columns)
    if limit is not None:
        questions_data = questions_data.subset(limit, seed)
    session = load(base, adapter, precision, base_precision)
    prompting = session.choose_prompting(Choices(template, chat_template, chat_arguments, special_tokens))
    chat, text = session.chat_encoder(prompting, questions_data), prompting.template
    longest = min(session.model.config.max_positions, max_tokens or sys.maxsize)
    questions = Questions.of(questions_data, session.tokenizer, text, longest,
                             how.decoding.max_new_tokens if how.decoding else None, scoring, chat, text_scores)
    if how.decoding:
        how = dataclasses.replace(how, decoding=dataclasses.replace(
            how.decoding, stop=questions.stop, max_new_tokens=questions.max_new_tokens))
    truths = training_groups(questions_data, session.tokenizer, text, longest, chat)[0] if how.perplexity else ()
    ranks.check_same({"version": __version__, "precision": session.model.precision, "questions": questions.ids})
    if ranks.first:
        make_writable(output)
    say(f"{questions_data.path}: {describe_data(questions_data)}")
    say(f"Base: {session.base.description}")
    if adapter:
        say(f"Adapter: {adapter}")
    for line in (rule_line(scoring, questions.scoring), *questions.report.lines(), *sampling_lines(session.checkpoint),
                 *special_token_lines(texts_of(questions_data), session.tokenizer.special, prompting.special_tokens)):
        say(line)
    generator, scores = Generator(session.model, session.tokenizer, text, chat), {}
    too_short = too_short_line(questions.references, generator, questions.max_new_tokens)
    if too_short:
        say(too_short)
    if session.adapter and with_base:
        with session.adapters_off():
            scores["base"] = score_and_write(generator, questions, Path(output, "base"), "base", seed, batch_size, how,
                                             truths, ranks)
    name = "adapter" if session.adapter else "base"
    scores[name] = score_and_write(generator, questions, Path(output), name, seed, batch_size, how, truths,
                                   ranks)
    if len(scores) == 2:
        say(comparison_table(scores["base"], scores["adapter"], seed=seed))
    else:
        found = summarize(scores[name], seed)
        say(f"EM {found.exact_match:.2f} {brackets(found.exact_match_interval)}, "
            f"F1 {found.f1:.2f} {brackets(found.f1_interval)}, {found.sample} (percent; {found.claim})")
    say(f"Predictions and scores: {output}")
    return scores


def score_and_write(generator: Generator, questions: Questions, folder: Path, name: str, seed: int,
                    batch_size: int = BATCH_SIZE, how: Answering = Answering(),
                    truths: Sequence[TokenGroup] = (), ranks: Ranks = ALONE) -> SquadScore:
    """Answer, score, and leave predictions.json, questions.jsonl and metrics.json in `folder`.

    Where questions may have no answer, also null_odds.json and raw_predictions.json, the answers before the threshold:
    what the official program of SQuAD v2 takes to find the best threshold.

    Answers to prompts without a context are also scored as texts, see `evaluation/text.py`.

    Args:
        truths: the questions with reference answers, if `how` asks for their perplexity.
        ranks: share the questions; the first writes.
    """
    more: dict[str, Any] = {}
    if how.extractive:
        spans = how.candidates and Candidates(how.candidates, questions.scoring, how.span_temperature)
        answers = extract(generator, questions, how.max_span_words, batch_size, name, ranks, how.no_answer_threshold,
                          spans)
    elif how.candidates:
        answers = answer_from_samples(generator, questions, how.candidates, batch_size, name, how.decoding,
                                      how.no_answer_threshold, seed)
    else:
        answers = answer(generator, questions, batch_size, name, how.decoding, ranks, how.no_answer_threshold)
    predictions = answers.texts
    loss = answer_loss(generator.model, truths, ranks) if truths else None
    found = questions.score(predictions)
    if not ranks.first:
        return found
    if loss is not None:
        more = {"answer_loss": loss, "answer_perplexity": math.exp(loss)}
        say(f"{name}: perplexity of the reference answers {math.exp(loss):.3f} ({loss:.4f} nats per token)")
    if how.candidates:
        more["candidates"], more["expected_f1"] = how.candidates, 100 * mean(answers.expected_f1.values() or [0.0])
        say(f"{name}: of {how.candidates} {'spans' if how.extractive else 'samples'} the one with the highest expected "
            f"F1; on average {more['expected_f1']:.2f}")
        if how.extractive:
            more["span_temperature"] = how.span_temperature
    if questions.no_answers:
        raw = questions.score(answers.raw) if answers.raw else None
        more["squad_v2"] = figures(found, raw, answers.null_odds)
        more["no_answer_threshold"] = how.no_answer_threshold if answers.raw else None
        say(f"{name}: {figures_line(more['squad_v2'])}")
    if not questions.contexts:  # texts with several references, not short answers
        scores = scores_by_group(questions.references, predictions, questions.parts, seed, questions.text_scores)
        listed = {group: {metric: dataclasses.asdict(score) for metric, score in own.items()}
                  for group, own in scores.items()}
        more |= {"text_scores": listed.pop(ALL), "text_scores_by_group": listed, "text_scores_interval": INTERVAL}
        for group, own in scores.items():
            for metric, score in own.items():
                say(f"{name}: {metric} {score.shown} ({score.note})" if group == ALL else
                    f"{name}, {group}: {metric} {score.shown}")
    with written_together(folder, "metrics.json") as stage:
        if how.extractive:
            write_spans(stage / "spans.jsonl", answers.spans)
        if answers.raw:
            write_json(stage / "null_odds.json", dict(answers.null_odds))
            write_predictions(stage / "raw_predictions.json", answers.raw)
        write_predictions(stage / "predictions.json", predictions)
        write_question_scores(stage / "questions.jsonl", found, questions.references)
        write_metrics(stage / "metrics.json", summarize(found, seed), **more)
    return found


def write_spans(path: Path, spans: Mapping[str, Extract]) -> None:
    """One span per line: id, text, start, end in characters of the context; log_probability, null without a span;
    empty_log_probability; if it was chosen by its expected_f1, this and candidates_log_probability."""
    with atomic_write(path) as stream:
        for question, span in spans.items():
            values = span._asdict()
            if not span.text:
                values["log_probability"] = None
            if span.expected_f1 is None:
                del values["expected_f1"], values["candidates_log_probability"]
            stream.write(json.dumps({"id": question, **values}, ensure_ascii=False) + "\n")


def brackets(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
