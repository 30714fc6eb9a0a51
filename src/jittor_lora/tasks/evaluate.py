"""Answering the questions of a data set, and scoring the answers."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jittor_lora import __version__
from jittor_lora.data.examples import training_groups
from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.prompting import Choices
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.data.special_tokens import special_token_lines, texts_of
from jittor_lora.data.stream import micro_batches
from jittor_lora.errors import UserError
from jittor_lora.evaluation.compare import comparison_table
from jittor_lora.evaluation.metrics import summarize, write_metrics
from jittor_lora.evaluation.no_answer import figures, figures_line
from jittor_lora.evaluation.predictions import write_predictions, write_question_scores
from jittor_lora.evaluation.scoring import AUTO, SquadScore, rule_line
from jittor_lora.evaluation.text import ALL, INTERVAL, scores_by_group
from jittor_lora.files.atomic import atomic_write, make_writable, write_json, written_together
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.hugging_face import sampling_lines
from jittor_lora.inference.extraction import Candidates, Extract
from jittor_lora.inference.generator import Generator
from jittor_lora.session import load
from jittor_lora.system.ranks import ALONE, Ranks, join
from jittor_lora.tasks.answering import BATCH_SIZE, GREEDY, Answering, answer, answer_from_samples, extract, say
from jittor_lora.tasks.ensemble import learnt_smoothing, load_ensemble
from jittor_lora.tasks.questions import Questions

TOKENS_AT_A_TIME = 1024  # of reference answers with their prompts


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


def evaluate(base: str, data: str, output: str, adapter: Path | AdapterSource | None = None,
             with_base: bool = False, limit: int | None = None, template: str | None = None,
             max_tokens: int | None = None, seed: int = 42, batch_size: int = BATCH_SIZE, how: Answering = GREEDY,
             precision: str = "fp32", special_tokens: str | None = None, columns: Mapping[str, str] | None = None,
             chat_template: str | None = None, chat_arguments: Mapping[str, Any] | None = None,
             scoring: str = AUTO, text_scores: str = AUTO, base_precision: str = "auto",
             ensemble: Sequence[AdapterSource] = (), label_smoothing: float | None = None) -> dict[str, SquadScore]:
    """Score a base, or a base with an adapter, or both side by side, on a data set.

    Leaves predictions.json, metrics.json and questions.jsonl in `output`, and spans.jsonl for extractive answers; with
    `with_base` those of the base are in `output/base`. Where questions may have no answer, see `score_and_write`. Under
    mpirun all ranks call this together and share the questions; only the first writes.

    Args:
        ensemble: further adapters, which answer together with `adapter`.
        label_smoothing: see `Answering`; by default as the record of the adapter, or of the base, says.

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
    names = load_ensemble(session, ensemble)
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
        say(f"{'Adapters, together' if ensemble else 'Adapter'}: {', '.join(map(str, (adapter, *ensemble)))}")
    for line in (rule_line(scoring, questions.scoring), *questions.report.lines(), *sampling_lines(session.checkpoint),
                 *special_token_lines(texts_of(questions_data), session.tokenizer.special, prompting.special_tokens)):
        say(line)
    how = dataclasses.replace(how, label_smoothing=learnt_smoothing(session, names)
                              if label_smoothing is None else label_smoothing)
    generator, scores = Generator(session.model, session.tokenizer, text, chat, names), {}
    too_short = too_short_line(questions.references, generator, questions.max_new_tokens)
    if too_short:
        say(too_short)
    if session.adapter and with_base:
        with session.adapters_off():
            alone = Generator(session.model, session.tokenizer, text, chat)
            plain = dataclasses.replace(how, label_smoothing=session.base_prompting.label_smoothing)
            scores["base"] = score_and_write(alone, questions, Path(output, "base"), "base", seed, batch_size, plain,
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
                    batch_size: int = BATCH_SIZE, how: Answering = GREEDY,
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
                          spans, how.label_smoothing)
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
    if how.extractive:
        more["label_smoothing"] = how.label_smoothing
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
