"""Several systems on the same questions: answers given now or earlier, scored, plotted, and put into one report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jittor_lora.data.examples import Data
from jittor_lora.data.prompting import Choices
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.data.special_tokens import special_token_lines, texts_of
from jittor_lora.data.squad import SquadData
from jittor_lora.errors import UserError
from jittor_lora.evaluation.breakdown import breakdown_json, breakdown_table, breakdowns, extremes
from jittor_lora.evaluation.charts import label_font, loss_chart, save_chart
from jittor_lora.evaluation.duplicates import duplicates
from jittor_lora.evaluation.items import items_of
from jittor_lora.evaluation.loss_logs import read_run_losses
from jittor_lora.evaluation.report import Chart, Report, write_report
from jittor_lora.evaluation.scoring import AUTO, chosen_rule, rule_line
from jittor_lora.evaluation.seeds import runs_json, runs_of, runs_table, text_runs_table, text_spreads
from jittor_lora.evaluation.standings import standings, standings_json, standings_table, text_table
from jittor_lora.evaluation.system_charts import improvement_chart, score_chart
from jittor_lora.evaluation.systems import (
    PREDICTIONS,
    System,
    answer_settings,
    only_answered,
    read_system,
    run_of,
    run_settings,
)
from jittor_lora.evaluation.text import (
    ALL,
    INTERVAL,
    TextScore,
    chosen_evaluation,
    groups_of,
    scores_by_group,
)
from jittor_lora.files.atomic import make_writable, write_json
from jittor_lora.settings.shared import CANDIDATES

if TYPE_CHECKING:
    from jittor_lora.tasks.answering import Answering

BASE, GREEDY = "base", "greedy"
_EXTREMES = 20


@dataclass(frozen=True)
class Evaluation:
    """Systems to answer now: a base, and the base with each of some adapters.

    Args:
        base: its name.
        adapters: (name, folder with its files) of each.
        with_base: also answer with the base alone.
        precisions, modes: each system answers once for each combination; for modes see `answering`.
        template, max_tokens, max_new_tokens, batch_size, special_tokens, chat_template, chat_arguments,
            base_precision: as in `evaluate`.
    """

    base: str
    adapters: Sequence[tuple[str, Path]] = ()
    with_base: bool = True
    precisions: Sequence[str] = ("fp32",)
    modes: Sequence[str] = (GREEDY,)
    template: str | None = None
    max_tokens: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 64
    special_tokens: str | None = None
    chat_template: str | None = None
    chat_arguments: Mapping[str, Any] | None = None
    base_precision: str = "auto"

    def names(self) -> list[str]:
        """Names of the systems, in the order in which they answer."""
        return [self.name(name, precision, mode) for precision in self.precisions
                for name in [*([BASE] if self.with_base else []), *(name for name, _ in self.adapters)]
                for mode in self.modes]

    def name(self, name: str, precision: str, mode: str) -> str:
        """A system's name, with precision and mode where there are several."""
        return " ".join([name, *([precision] if len(self.precisions) > 1 else []),
                         *([mode] if len(self.modes) > 1 else [])])

    def runs(self, adapters: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The systems that are runs of one, by its name, given the adapters that are."""
        return {self.name(name, precision, mode): [self.name(run, precision, mode) for run in runs]
                for name, runs in adapters.items() for precision in self.precisions for mode in self.modes}


def compare(data: str, output: str, predictions: Sequence[tuple[str, Path]] = (), evaluation: Evaluation | None = None,
            train_data: str | None = None, limit: int | None = None, against: str | None = None, seed: int = 42,
            title: str | None = None, language: str = "en", font: str | None = None,
            official: bool = False, columns: Mapping[str, str] | None = None, scoring: str = AUTO,
            text_scores: str = AUTO, runs: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Compare systems on the questions of a data set.

    Leaves report.html, comparison.json and plots/ in `output`, and the answers given now in systems/.

    Args:
        predictions: (name, file) of systems that answered earlier.
        train_data: report which of the questions it contains.
        against: name of the system, or of runs, to compare the others with; by default the first.
        language, font: of the plots.
        scoring, text_scores: the rule for all systems, and the scores of texts; "auto" for those that the data ask
            for.
        official: count questions that no system answered as 0, by SQuAD's official rule, instead of leaving them out.
        columns: what `data` and `train_data` call our fields.
        runs: systems that are runs of one with different seeds, at least two, by its name.

    Returns: the report's path.

    Raises:
        UserError: something that the user can fix.
    """
    names = [*(evaluation.names() if evaluation else ()), *(name for name, _ in predictions)]
    runs = runs or {}
    if against is not None and against not in (*names, *runs):
        raise UserError(f"--against {against}: no such system; the systems are {', '.join(names)}.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"several systems are named {', '.join(repeated)}; give them different names with NAME=PATH.")
    label_font(language, font, *names)
    questions = load_data(data, "dev", "evaluation", columns=columns)
    if limit is not None:
        questions = questions.subset(limit, seed)
    rule, evaluated_as = chosen_rule(scoring, questions), chosen_evaluation(text_scores, questions)
    folder = Path(output)
    make_writable(folder)
    read = [read_system(name, path, questions, rule) for name, path in predictions]
    training = items_of(load_data(train_data, columns=columns)) if train_data else None
    made = evaluated(evaluation, questions, folder / "systems", limit, seed, rule, evaluated_as) if evaluation else []
    systems = sorted([*made, *read], key=lambda system: system.name not in (against, *runs.get(against, ())))
    runs = {name: runs[name] for name in sorted(runs, key=lambda name: against not in (name, *runs[name]))}
    asked, left_out = len(questions.references()), ""
    if not official:
        systems, questions = only_answered(systems, questions)
    references = questions.references()
    if len(references) < asked:
        left_out = (f"No system answered {asked - len(references):,} of the {asked:,} questions; they are left out. "
                    "With --official they count as 0, as in SQuAD's official evaluation.")
        print(left_out)

    items, found = items_of(questions), standings(systems, seed)
    over_runs = runs_of(systems, runs, seed)
    kinds = {system.name: breakdowns(items, system.score, seed) for system in systems}
    texts = {} if isinstance(questions, SquadData) else {
        system.name: scores_by_group(references, _predictions(system), groups_of(questions), seed, evaluated_as)
        for system in systems}
    text_runs = text_spreads(texts, runs) if texts else {}
    shared = duplicates(training, items) if training is not None else None
    write_json(folder / "comparison.json", {
        "data": questions.path, "questions": len(references), "left_out": asked - len(references), "seed": seed,
        "scoring": rule,
        "systems": standings_json(found),
        "runs": runs_json(over_runs),
        "settings": {system.name: dict(system.settings) for system in systems},
        "breakdowns": {name: breakdown_json(groups) for name, groups in kinds.items()},
        "text_scores": {name: _listed(scores[ALL]) for name, scores in texts.items()},
        "text_scores_by_group": {name: {group: _listed(own) for group, own in scores.items() if group != ALL}
                                 for name, scores in texts.items()},
        "text_scores_interval": INTERVAL if texts else None,
        "text_scores_runs": {name: {group: {score: asdict(one) for score, one in own.items()}
                                    for group, own in scores.items()} for name, scores in text_runs.items()},
        "duplicates": vars(shared) if shared else None,
        "extremes": {system.name: _extremes(system) for system in systems}})
    look = {"language": language, "font": font}
    charts = [_drawn(score_chart([(one.name, one.metrics) for one in found], **look), folder / "plots" / "scores",
                     "Chart of exact match and F1; the numbers are in the table above")]
    if len(found) > 1:
        gains = [(one.name, one.exact_match, one.f1) for one in found[1:]]
        charts.append(_drawn(improvement_chart(found[0].name, gains, found[0].metrics, **look),
                             folder / "plots" / "improvement",
                             f"Chart of the differences from {found[0].name}; the numbers are in the table above"))
    curves = [_drawn(loss_chart(read_run_losses(run), title=name, **look), folder / "plots" / f"loss-{number}",
                     f"Loss curves of the run of {name}")
              for number, (run, name) in enumerate(_runs(systems).items(), 1)]
    report = folder / "report.html"
    title = title or f"Comparison: {', '.join(system.name for system in systems)}"
    summary = f"{Path(questions.path).name}: {describe_data(questions)}{'. ' if left_out else ''}{left_out}"
    write_report(report, Report(title, summary, items, systems, found, kinds, texts, shared, charts, curves,
                                over_runs, text_runs))
    print(rule_line(scoring, rule))
    print(standings_table(found))
    if texts:
        print(f"\n{text_table(texts)}")
    if text_runs:
        print(f"\n{text_runs_table(text_runs)}")
    if over_runs:
        print(f"\n{runs_table(over_runs)}")
    for system in systems:
        print(f"\n{system.name}\n{breakdown_table(kinds[system.name])}")
    if shared:
        print(f"\n{train_data}: {len(shared.questions)} of {len(items)} questions are in it with the same context, "
              f"{len(shared.contexts)} ask about a context in it")
    print(f"\nReport: {report}")
    return report


def evaluated(evaluation: Evaluation, data: Data, folder: Path, limit: int | None, seed: int, rule: str,
              text_scores: str) -> list[System]:
    """Answer the questions with each system, in a folder per system, and read the answers back."""
    systems = []
    for name, path, settings in _answered(evaluation, data, folder, seed, rule, text_scores):
        system = read_system(name, path / PREDICTIONS, data, rule)
        settings = {**settings, **({"questions": f"{limit} drawn with seed {seed}"} if limit else {})}
        run = run_of(settings["adapter"]) if settings["adapter"] else None
        settings = {**settings, **answer_settings(path), **run_settings(run)}
        systems.append(System(name, system.score, settings, run, system.perplexity))
    return systems


def _answered(evaluation: Evaluation, data: Data, folder: Path, seed: int, rule: str,
              text_scores: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(name, folder, settings) of each system, once it has answered."""
    from jittor_lora.inference.generator import Generator
    from jittor_lora.session import load
    from jittor_lora.tasks.answering import say
    from jittor_lora.tasks.evaluate import score_and_write
    from jittor_lora.tasks.questions import Questions
    for precision in evaluation.precisions:
        session = load(evaluation.base, precision=precision, base_precision=evaluation.base_precision)
        limit = min(session.model.config.max_positions, evaluation.max_tokens or sys.maxsize)
        say(f"Base: {session.base.description}, {precision}")
        for name, path in [*([(BASE, None)] if evaluation.with_base else []), *evaluation.adapters]:
            facts = {}
            if path is not None:
                adapter = session.load_adapter(path)
                targets = adapter.config.target_modules
                facts = {"rank": adapter.config.r, "alpha": adapter.config.alpha,
                         "targets": targets if isinstance(targets, str) else ", ".join(targets)}
            prompting = session.choose_prompting(Choices.of(evaluation))
            chat, template = session.chat_encoder(prompting, data), prompting.template
            questions = Questions.of(data, session.tokenizer, template, limit, evaluation.max_new_tokens, rule,
                                     chat, text_scores)
            for line in special_token_lines(texts_of(data), session.tokenizer.special, prompting.special_tokens):
                say(f"{name}: {line}")
            for mode in evaluation.modes:
                system = evaluation.name(name, precision, mode)
                target = folder / system.replace("/", "-")
                how = replace(answering(mode), label_smoothing=prompting.label_smoothing)
                score_and_write(Generator(session.model, session.tokenizer, template, chat), questions, target,
                                system, seed, evaluation.batch_size, how)
                yield system, target, {
                    "base": session.base.description, "adapter": str(path) if path else "", **facts,
                    "precision": precision, "answers": mode, "template": template.text,
                    "longest prompt and answer": limit, "longest answer": questions.max_new_tokens, "scoring": rule}
            if path is not None:
                session.delete_adapter(adapter.name)


def answering(mode: str) -> Answering:
    """How a mode answers."""
    from jittor_lora.tasks.answering import Answering
    return Answering(extractive=mode.startswith("extractive"), candidates=CANDIDATES if mode.endswith("-f1") else None)


def _predictions(system: System) -> dict[str, str]:
    return {question.id: question.prediction for question in system.score.per_question
            if question.prediction is not None}


def _listed(scores: Mapping[str, TextScore]) -> dict[str, dict[str, Any]]:
    return {name: vars(score) for name, score in scores.items()}


def _extremes(system: System) -> Mapping[str, list[dict[str, Any]]]:
    return {name: [vars(question) for question in questions]
            for name, questions in zip(("worst", "best"), extremes(system.score, _EXTREMES))}


def _runs(systems: Sequence[System]) -> dict[Path, str]:
    """The runs that the systems came from, each with their names."""
    names: dict[Path, list[str]] = {}
    for system in systems:
        if system.run is not None:
            names.setdefault(system.run, []).append(system.name)
    return {run: ", ".join(found) for run, found in names.items()}


def _drawn(figure, path: Path, words: str) -> Chart:
    """Save a plot, as a chart for the report."""
    svg = next(written for written in save_chart(figure, path) if written.suffix == ".svg")
    return Chart(svg.read_bytes(), words)
