"""Runs that differ in one setting, scored on the same questions: a table, a picture, and the numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from jittor_lora.data.prompting import Choices
from jittor_lora.data.sources import load_data
from jittor_lora.errors import Stopped, UserError
from jittor_lora.evaluation.charts import save_chart
from jittor_lora.evaluation.compare import table
from jittor_lora.evaluation.curve_chart import curve_chart, label_font
from jittor_lora.evaluation.metrics import Metrics, summarize
from jittor_lora.evaluation.predictions import read_predictions
from jittor_lora.evaluation.scoring import chosen_rule, rule_line
from jittor_lora.evaluation.seeds import CLAIM, Spread, spread
from jittor_lora.evaluation.systems import SMOOTHING, answer_settings
from jittor_lora.files.atomic import atomic_write, make_writable, write_json
from jittor_lora.formats.hugging_face import read_json
from jittor_lora.inference.generator import Generator
from jittor_lora.session import Session, load
from jittor_lora.settings.curve import CurveConfig
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import free_memory, set_threads
from jittor_lora.tasks.answering import Answering, say
from jittor_lora.tasks.evaluate import brackets, score_and_write
from jittor_lora.tasks.questions import Questions
from jittor_lora.tasks.run_folder import PRODUCTS, SETTINGS_FILE, SUMMARY_FILE
from jittor_lora.tasks.train import subset, train

_COUNTS = ("steps", "trainable_parameters")


def curve(config: CurveConfig) -> None:
    """Train and score every point, and leave curve.json, curve.md, curve.png and curve.svg in `config.output`.

    Finished work is not repeated: a completed run is only scored, an interrupted one is resumed, and existing answers
    are only scored.

    Raises:
        Stopped: a run was interrupted, and has saved; call again with the same settings to continue.
        UserError: the folder holds points with other settings, or something else that the user can fix.
    """
    missing = [name for name in ("data", "dev", "output") if getattr(config, name) is None]
    if missing:
        raise UserError(f"curve needs {', '.join(missing)}.")
    label_font(config.language, config.font)
    folder = Path(config.output)
    make_writable(folder)
    if config.threads:
        set_threads(config.threads)
    questions_data = load_data(config.dev, "dev", "evaluation", columns=config.columns)
    questions_data = subset(questions_data, config.max_dev, config.seed)
    examples = len(subset(load_data(config.data, "train", columns=config.columns), config.max_train, config.seed))
    runs = {value: _at_least(config.run(value, str(folder / f"{config.over}-{value}")), config.min_steps,
                             value if config.over == "examples" else examples) for value in config.values(examples)}
    _refuse_others(runs)

    def scored(session: Session, where: Path, name: str) -> Metrics:
        limit = min(session.model.config.max_positions, config.max_tokens or session.model.config.max_positions)
        prompting = session.choose_prompting(Choices.of(config))
        chat = session.chat_encoder(prompting, questions_data)
        questions = Questions.of(questions_data, session.tokenizer, prompting.template, limit, chat=chat,
                                 scoring=config.scoring)
        where = where / ("extractive" if config.extractive else "generated")
        how = Answering(extractive=config.extractive, label_smoothing=prompting.label_smoothing)
        corrected = not how.extractive or how.label_smoothing == answer_settings(where).get(SMOOTHING, 0.0)
        if (where / "predictions.json").is_file() and corrected:
            predictions = read_predictions(where / "predictions.json")
            if predictions.keys() == set(questions.ids):
                return summarize(questions.score(predictions), config.seed)
        generator = Generator(session.model, session.tokenizer, prompting.template, chat)
        return summarize(score_and_write(generator, questions, where, name, config.seed, how=how), config.seed)

    say(rule_line(config.scoring, chosen_rule(config.scoring, questions_data)))
    base = scored(load(config.base, precision=config.precision, base_precision=config.base_precision), folder / "base",
                  "base")
    free_memory()
    points: list[dict[str, Any]] = []
    for value, run in runs.items():
        say(f"{config.over} {value:,}: {run.output}")
        # Not kept in a variable: two models at once would take twice the memory.
        found = scored(trained(run), Path(run.output, "evaluation"), f"{config.over} {value}")
        free_memory()
        points.append({"value": value, "run": run.output, "metrics": found,
                       **read_summary(Path(run.output, SUMMARY_FILE))})
        write_curve(folder, config, base, points)
    print(curve_table(config.over, base, points))
    say(f"Curve: {folder / 'curve.json'}, {folder / 'curve.md'}, {folder / 'curve.png'}")


def read_summary(path: Path) -> dict[str, Any]:
    """The values of a run's summary.json that a point shows: steps, seconds, trainable_parameters, train_loss.

    Raises:
        UserError: it is not the summary of a run; everything missing or wrong is listed.
    """
    values = read_json(path)
    wrong = [f"{name}: expected a whole number from 0" for name in _COUNTS
             if type(values.get(name)) is not int or values[name] < 0]
    if type(values.get("seconds")) not in (int, float) or not 0 <= values["seconds"] < 1e12:
        wrong.append("seconds: expected a number from 0")
    if values.get("train_loss") is not None and type(values["train_loss"]) not in (int, float):
        wrong.append("train_loss: expected a number or null")
    if wrong:
        raise UserError("\n  ".join([f"{path}: not the summary of a training run:", *wrong]) +
                        "\nRemove the folder of this point to train it again.")
    return {name: values.get(name) for name in (*_COUNTS, "seconds", "train_loss")}


def trained(run: RunConfig) -> Session:
    """The base with the run's result, trained now if it does not exist yet.

    Raises:
        Stopped: it was interrupted.
    """
    folder = Path(run.output)
    done = (folder / SUMMARY_FILE).is_file()
    if done and run.method == "full":
        return load(str(folder / PRODUCTS["full"]), precision=run.precision)
    session = load(run.base, precision=run.precision, base_precision=run.base_precision)
    if done:
        session.load_adapter(folder / PRODUCTS["lora"])
    else:
        ended = train(run, (folder / SETTINGS_FILE).is_file(), session)
        if "signal" in ended:
            raise Stopped(ended["signal"])
    return session


def means(points: list[dict[str, Any]]) -> dict[str, Spread]:
    """Mean and deviation of each score over the points, which are runs with different seeds."""
    return {name: spread([getattr(point["metrics"], name) for point in points]) for name in ("exact_match", "f1")}


def write_curve(folder: Path, config: CurveConfig, base: Metrics, points: list[dict[str, Any]]) -> None:
    rows = [{**point, "metrics": dataclasses.asdict(point["metrics"])} for point in points]
    overall = {"mean": {name: dataclasses.asdict(found) for name, found in means(points).items()}} \
        if over_seeds(config.over, points) else {}
    write_json(folder / "curve.json", {"over": config.over,
                                       "answers": "extractive" if config.extractive else "generated",
                                       "base": dataclasses.asdict(base), "points": rows, **overall})
    with atomic_write(folder / "curve.md") as stream:
        stream.write(markdown(config.over, base, points))
    chart = curve_chart(config.over, [(point["value"], point["metrics"]) for point in points], base,
                        language=config.language, font=config.font)
    save_chart(chart, folder / "curve")


def rows_of(over: str, base: Metrics, points: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = [(over, "steps", "trained parameters", "exact match", "95 %", "F1", "95 %", "seconds"),
            ("base", "", "", f"{base.exact_match:.2f}", brackets(base.exact_match_interval), f"{base.f1:.2f}",
             brackets(base.f1_interval), "")]
    for point in points:
        found = point["metrics"]
        rows.append((f"{point['value']:,}", f"{point['steps']:,}", f"{point['trainable_parameters']:,}",
                     f"{found.exact_match:.2f}", brackets(found.exact_match_interval), f"{found.f1:.2f}",
                     brackets(found.f1_interval), f"{point['seconds']:.0f}"))
    if over_seeds(over, points):
        cells = [(f"{one.mean:.2f} ± {one.deviation:.2f}", brackets((one.low, one.high)))
                 for one in means(points).values()]
        rows.append((f"mean of {len(points)}", "", "", *cells[0], *cells[1], ""))
    return rows


def over_seeds(over: str, points: list[dict[str, Any]]) -> bool:
    """Do the points have a mean with an interval?"""
    return over == "seed" and len(points) > 1


def claim(over: str, base: Metrics, points: list[dict[str, Any]]) -> str:
    """What the numbers of the table are, in words."""
    of_mean = f"; the mean is given ± the standard deviation of a run, and its {CLAIM}" \
        if over_seeds(over, points) else ""
    return f"{base.sample}, scores in percent; {base.claim}{of_mean}"


def curve_table(over: str, base: Metrics, points: list[dict[str, Any]]) -> str:
    return f"{table(rows_of(over, base, points))}\n{claim(over, base, points)}"


def markdown(over: str, base: Metrics, points: list[dict[str, Any]]) -> str:
    head, *rows = rows_of(over, base, points)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + f"\n\n{claim(over, base, points)}.\n"


def _at_least(run: RunConfig, min_steps: int, examples: int) -> RunConfig:
    """The run with at least `min_steps` steps."""
    if run.max_steps is not None:
        return run
    steps = round(run.epochs * math.ceil(examples / (run.batch_size * run.gradient_accumulation)))
    return run.model_copy(update={"epochs": None, "max_steps": min_steps}) if steps < min_steps else run


def _refuse_others(runs: dict[int, RunConfig]) -> None:
    """
    Raises:
        UserError: a point's folder holds a run with other settings; all are listed.
    """
    wrong = []
    for run in runs.values():
        if Path(run.output, SETTINGS_FILE).is_file():
            before = RunConfig.resolve(str(Path(run.output, SETTINGS_FILE)))
            changed = [name for name, value in run.model_dump().items()
                       if name not in ("threads", "scoring") and getattr(before, name) != value]
            if changed:
                wrong.append(f"{run.output}: {', '.join(changed)}")
    if wrong:
        raise UserError("These points hold runs with other settings:\n  " + "\n  ".join(wrong) +
                        "\nGive the settings they were started with, or another --output.")
