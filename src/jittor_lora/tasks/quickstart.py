"""Everything once, on a small scale: score the base, train, score the adapter, plot, and show answers."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from jittor_lora.data.prompting import Choices
from jittor_lora.data.sources import load_data
from jittor_lora.data.squad import SquadData
from jittor_lora.errors import Stopped, UserError
from jittor_lora.evaluation.charts import loss_chart, save_chart
from jittor_lora.evaluation.compare import comparison_table
from jittor_lora.evaluation.loss_logs import read_run_losses
from jittor_lora.evaluation.metrics import summarize
from jittor_lora.evaluation.predictions import read_predictions
from jittor_lora.evaluation.scoring import SquadScore, rule_line
from jittor_lora.evaluation.system_charts import score_chart
from jittor_lora.inference.generator import Generator
from jittor_lora.session import Session, load
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.locks import LOCK_FILE, locked
from jittor_lora.system.runtime import set_threads
from jittor_lora.tasks.answering import say
from jittor_lora.tasks.evaluate import score_and_write
from jittor_lora.tasks.questions import Questions
from jittor_lora.tasks.run_folder import EVALUATION, SETTINGS_FILE, SUMMARY_FILE
from jittor_lora.tasks.train import subset, train

SHOWN_ANSWERS = 6
LAST_WRITTEN = Path("plots", "scores.svg")


def quickstart(config: RunConfig) -> None:
    """Run it all in `config.output`, or in the next free folder of that name if it holds a finished run.

    An interrupted quickstart continues when it is called again with the same settings.

    Raises:
        Stopped: a signal asked the training to end, and it has saved.
        UserError: another process is at work in the folder, or something that the user can fix.
    """
    missing = [name for name in ("data", "dev", "output") if getattr(config, name) is None]
    if missing:
        raise UserError(f"quickstart needs {', '.join(missing)}; keep the recipe's value or give another.")
    if config.method != "lora":
        raise UserError("method: quickstart trains an adapter; use `jittor-lora train` for full fine-tuning.")
    folder, resume = run_folder(config)
    with locked(folder / EVALUATION):  # the training locks the run folder itself
        _quickstart(config, folder, resume)


def _quickstart(config: RunConfig, folder: Path, resume: bool) -> None:
    config = config.model_copy(update={"output": str(folder)})
    data = subset(load_data(config.dev, "dev", "evaluation", columns=config.columns), config.max_dev, config.seed)
    if not isinstance(data, SquadData):
        raise UserError(f"--dev {config.dev}: quickstart scores answers to questions; expected SQuAD JSON.")
    if config.threads:
        set_threads(config.threads)
    session = load(config.base, precision=config.precision, base_precision=config.base_precision)
    say(f"Base: {session.base.description}")
    limit = min(session.model.config.max_positions, config.max_tokens or session.model.config.max_positions)
    prompting = session.choose_prompting(Choices.of(config))
    questions = Questions.of(data, session.tokenizer, prompting.template, limit, scoring=config.scoring)
    say(rule_line(config.scoring, questions.scoring))

    say(f"1/4  Answering {len(data)} held-out questions with the base")
    before = scored(session, questions, folder / EVALUATION / "base", config.seed)
    say(f"2/4  Training in {folder}")
    ended = train(config, resume, session)
    if "signal" in ended:
        raise Stopped(ended["signal"])
    say("3/4  Answering the same questions with the adapter")
    after = score_and_write(Generator(session.model, session.tokenizer), questions, folder / EVALUATION / "adapter",
                            "adapter", config.seed)
    say("4/4  Drawing")
    pictures = save_chart(loss_chart(read_run_losses(folder)), folder / "plots" / "loss")
    systems = [("base", summarize(before, config.seed)), ("adapter", summarize(after, config.seed))]
    pictures += save_chart(score_chart(systems), folder / LAST_WRITTEN.with_suffix(""))

    print(answers_shown(data, before, after, config.seed))
    print(comparison_table(before, after, seed=config.seed))
    kept = "" if config.base_precision == "auto" else f" --base-precision {config.base_precision}"
    print(f"\nAdapter:      {folder / 'adapter'}\nPlots:        {', '.join(map(str, pictures))}\n"
          f"Predictions:  {folder / 'evaluation'}\n\nAsk it yourself:\n"
          f"  jittor-lora generate --base {session.base.name} --adapter {folder / 'adapter'}{kept} \\\n"
          f"    --context \"Jittor was released by Tsinghua University in 2020.\" --question \"Who released Jittor?\"\n"
          f"In the browser, beside the base, and as an API (`make serve` does it in one step):\n"
          f"  jittor-lora serve --adapter {folder}{kept}")


def run_folder(config: RunConfig) -> tuple[Path, bool]:
    """The folder to work in, and whether to resume an interrupted run in it."""
    number, folder = 1, Path(config.output)
    while folder.exists():
        if (folder / SETTINGS_FILE).is_file() and not _finished(folder):
            earlier = RunConfig.resolve(str(folder / SETTINGS_FILE))
            same = earlier == config.model_copy(update={"output": str(folder), "threads": earlier.threads})
        else:
            same = False
        if same:
            say(f"{folder}: resuming the interrupted run.")
            return folder, True
        if folder.is_dir() and not any(path.name not in (EVALUATION, LOCK_FILE) for path in folder.iterdir()):
            return folder, False
        number += 1
        folder = Path(f"{config.output}-{number}")
    if number > 1:
        say(f"{config.output} holds another run; this one goes to {folder}.")
    return folder, False


def _finished(folder: Path) -> bool:
    """Whether nothing is left to do in `folder`: all of a quickstart is there, or a run of another command."""
    trained = (folder / SUMMARY_FILE).is_file()
    return trained and (not (folder / EVALUATION / "base").is_dir() or (folder / LAST_WRITTEN).is_file())


def scored(session: Session, questions: Questions, folder: Path, seed: int) -> SquadScore:
    """The scores of the base, from the predictions of an interrupted run if it made any for these questions."""
    path = folder / "predictions.json"
    if path.is_file():
        predictions = read_predictions(path)
        if predictions.keys() == {branch.id for group in questions.groups for branch in group.branches}:
            return questions.score(predictions)
    return score_and_write(Generator(session.model, session.tokenizer), questions, folder, "base", seed)


def answers_shown(data: SquadData, before: SquadScore, after: SquadScore, seed: int) -> str:
    """Some questions, drawn at random and not by score, with the reference and the answers of base and adapter."""
    base, adapter = ({q.id: q.prediction or "" for q in found.per_question} for found in (before, after))
    questions = [question for paragraph in data.paragraphs for question in paragraph.questions]
    drawn = np.random.Generator(np.random.Philox(seed)).permutation(len(questions))[:SHOWN_ANSWERS]
    lines = []
    for question in (questions[i] for i in drawn):
        references = " | ".join(dict.fromkeys(answer.text for answer in question.answers))
        rows = (("question", question.text), ("reference", references), ("base", base[question.id]),
                ("adapter", adapter[question.id]))
        lines += [f"{name:>10}  {textwrap.shorten(text, 100, placeholder=' …') or '(nothing)'}" for name, text in rows]
        lines.append("")
    return "\n".join(lines)
