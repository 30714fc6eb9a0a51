"""Training an adapter or all weights, from settings to a run folder."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, NamedTuple

from jittor_lora import __version__
from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.check import obstacles, refuse_obstacles
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.examples import Data, training_groups
from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.length_report import LengthReport
from jittor_lora.data.prompting import Choices, Prompting
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from jittor_lora.files.atomic import remove_leftovers
from jittor_lora.formats.base_record import find_base
from jittor_lora.formats.bases import WantedBase
from jittor_lora.formats.prompting import date_of, write_prompting
from jittor_lora.formats.training_state import Copies, TrainingState, write_state
from jittor_lora.inference.generator import Generator
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.lora.whole import WholeModel
from jittor_lora.session import Session, load
from jittor_lora.settings.reports import require_packages
from jittor_lora.settings.run import RunConfig, flag
from jittor_lora.system.locks import locked
from jittor_lora.system.ranks import Ranks, join
from jittor_lora.system.runtime import set_threads, system_info, threads
from jittor_lora.tasks.answering import answer
from jittor_lora.tasks.data_parallel import check_alike, ranks_line, start_alike
from jittor_lora.tasks.fingerprints import Sources, identity_of_base
from jittor_lora.tasks.lora_settings import described, lora_config
from jittor_lora.tasks.methods import Full, Lora, Method
from jittor_lora.tasks.questions import Questions
from jittor_lora.tasks.resume import restore
from jittor_lora.tasks.run_cost import Cost
from jittor_lora.tasks.run_folder import BEST, CHECKPOINTS, PRODUCTS, refuse_a_run, refuse_links
from jittor_lora.tasks.run_report import conclusion, introduction, summarize
from jittor_lora.tasks.run_values import state_of
from jittor_lora.training.batches import tokens_per_step, total_steps
from jittor_lora.training.log import NoLog, RunLog
from jittor_lora.training.loop import train as train_loop
from jittor_lora.training.optimizer import AdamW, optimizer_of
from jittor_lora.training.progress import Progress


def train(config: RunConfig, resume: bool = False, session: Session | None = None,
          loaded: Session | None = None) -> dict[str, Any]:
    """Train an adapter, or all weights, and leave in `config.output` adapter or model, checkpoints, logs and a summary.

    Under mpirun all ranks call this together and share each step; only the first reads and writes `config.output`.

    Args:
        config: with `data` and `output` given.
        resume: continue from the newest checkpoint in the run folder.
        session: the base in the precision of `config`, if it is loaded already. An adapter that is active in it is
            trained, and its settings override those of `config`; without one an adapter is added.
        loaded: deprecated name of `session`.

    Returns: the summary, as in summary.json.

    Raises:
        UserError: something that the user can fix; also if another process is at work in the folder, or the folder
            holds a run that is not to be resumed.
    """
    if loaded is not None:
        warnings.warn("train(loaded=...) is now train(session=...)", DeprecationWarning, stacklevel=2)
        session = session or loaded
    require_packages(config.report_to)
    folder, ranks = Path(config.output), join()
    with locked(folder):
        if ranks.first:
            if not resume:
                refuse_a_run(folder)
            refuse_links(folder)
            remove_leftovers(folder, *(folder / name for name in (CHECKPOINTS, BEST, *PRODUCTS.values())))
        return _train(config, folder, resume, ranks, session)


class Prepared(NamedTuple):
    """A run before its first step.

    Attributes:
        config: the settings, with those of an adapter that was already active.
        prompting, chat: how examples become texts, and what encodes conversations, if there are any.
        limit: the most tokens of an example.
        groups, dev_groups: tokenised training and validation examples; their reports.
    """

    config: RunConfig
    session: Session
    method: Method
    optimizer: AdamW
    prompting: Prompting
    chat: ChatEncoder | None
    limit: int
    train_data: Data
    groups: list[TokenGroup]
    report: LengthReport
    dev_data: Data | None
    dev_groups: list[TokenGroup]
    dev_report: LengthReport | None
    sources: Sources


def prepare(config: RunConfig, session: Session | None = None, base: Callable[[], str | WantedBase] | None = None,
            resume: bool = False, date: str | None = None) -> Prepared:
    """Read the data, load the base, and set up what is trained.

    Args:
        session: the base, if it is loaded already.
        base: returns the base to load, by default that of the settings.
        date: what a chat template shows as today, in ISO's form; by default today.

    Raises:
        UserError: see `train`.
    """
    if config.threads:
        set_threads(config.threads)
    train_data = subset(read_data(config, "data", resume), config.max_train, config.seed)
    dev_data = subset(read_data(config, "dev", resume), config.max_dev, config.seed) if config.dev else None
    session = session or load(base() if base else config.base, precision=config.precision,
                              base_precision=config.base_precision)
    prompting = session.choose_prompting(Choices.of(config), date)
    prompting = replace(prompting, conversations=isinstance(train_data, ConversationData),
                        label_smoothing=config.label_smoothing)
    sets = [data for data in (train_data, dev_data) if data is not None]
    chat = next((encoder for encoder in (session.chat_encoder(prompting, data) for data in sets) if encoder), None)
    limit = min(session.model.config.max_positions, config.max_tokens or sys.maxsize, config.max_tokens_per_stream)
    groups, report = training_groups(train_data, session.tokenizer, prompting.template, limit, chat,
                                     config.references != "most-frequent")
    dev_groups, dev_report = training_groups(dev_data, session.tokenizer, prompting.template, limit, chat) \
        if dev_data else ([], None)
    if not resume:
        meaning = "unknown" if config.origin("special_tokens") == "default" else config.special_tokens
        refuse_obstacles((data.path, obstacles(data, of_data, session.tokenizer.special, meaning))
                         for data, of_data in zip(sets, (report, dev_report)))

    config, method = method_of(config, session)
    session.set_prompting(prompting)
    session.model.activation_checkpointing = config.activation_checkpointing
    sources = Sources(groups, dev_groups, identity_of_base(session.checkpoint), session.model.precision)
    return Prepared(config, session, method, optimizer_of(config, method.trainable), prompting, chat, limit,
                    train_data, groups, report, dev_data, dev_groups, dev_report, sources)


def _train(config: RunConfig, folder: Path, resume: bool, ranks: Ranks, session: Session | None) -> dict[str, Any]:
    started = time.perf_counter()
    date = ranks.broadcast(date_of(folder) if resume and ranks.first else None)
    (config, session, method, optimizer, prompting, chat, limit, train_data, groups, report, dev_data, dev_groups,
     dev_report, sources) = prepare(config, session, (lambda: base_of_run(config, folder, ranks)) if resume else None,
                                    resume, date)
    trainable = method.trainable
    identities, system = sources.identities(), system_info()
    ranks.check_same({"version": __version__, **identities, **config.model_dump(exclude={"threads"})})
    progress, before, notes = Progress(), Cost(), []
    if resume and ranks.first:
        progress, before, notes = restore(folder / CHECKPOINTS, method, optimizer, config, sources, system)
    progress = start_alike(ranks, progress, trainable, optimizer)

    def save(progress: Progress) -> None:
        check_alike(ranks, trainable)
        if not ranks.first:
            return
        arrays = Copies({**{f"adapter.{name}": array for name, array in trainable.parameters().items()},
                         **{f"initial.{name}": array for name, array in trainable.initial().items()},
                         **optimizer.moments()})
        values = {"progress": state_of(progress), "settings": config.model_dump(), **identities, "threads": threads(),
                  "system": system, "cost": before.after(time.perf_counter() - started).values()}
        write_state(folder / CHECKPOINTS, progress.step, TrainingState(arrays, values), config.keep_checkpoints)

    def save_best(progress: Progress) -> None:
        if ranks.first:
            method.save(folder / BEST)

    answer_dev = None
    if config.eval_questions:
        dev_questions = subset(dev_data, config.eval_questions, config.seed)
        answer_dev = validation_scores(session, dev_questions, prompting, chat, limit, ranks, config.scoring)

    total, product = total_steps(groups, config), folder / PRODUCTS[config.method]
    with RunLog(folder, total, report_to=config.report_to or (),
                tokens_per_step=tokens_per_step(groups, config)) if ranks.first else NoLog() as log:
        if resume:
            log.truncate_to(progress.step)
        log.config(config.recipe())
        log.system(system)
        record = session.record(folder)
        if record and ranks.first:
            record.write(folder)
        if ranks.first:
            write_prompting(folder, prompting)
        for line in (*introduction(session, method, (train_data, report), dev_data and (dev_data, dev_report), chat,
                                   total), *notes, *ranks_line(ranks)):
            log.message(line)
        outcome = train_loop(session.model, trainable, groups, dev_groups, config, log, optimizer, progress, save,
                             save_best, answer_dev, ranks)
        if ranks.first:
            method.save(product)
        summary = summarize(outcome, session, method, report, before.after(time.perf_counter() - started))
        if outcome.reason != "interrupted":
            log.summary(summary)
        log.message(conclusion(outcome, folder, product))
    ranks.barrier()  # an interrupted rank ends the job, and the first one must have written everything by then
    return summary


def read_data(config: RunConfig, field: str, resume: bool) -> Data:
    """The examples that the setting `field`, "data" or "dev", names."""
    try:
        return load_data(getattr(config, field), "train" if field == "data" else "dev", columns=config.columns)
    except UserError as error:
        if resume and config.origin(field) != flag(field):
            raise UserError(f"{error}\nThis is the name in the run to be resumed; if the data has moved, say with "
                            f"{flag(field)} where it is.") from error
        raise


def subset(data: Data, count: int | None, seed: int) -> Data:
    return data if count is None else data.subset(count, seed)


def base_of_run(config: RunConfig, folder: Path, ranks: Ranks) -> str | WantedBase:
    """The base of the run in `folder`: as given, or where the run's record says. That it is still the same base is
    checked against the checkpoint."""
    if config.origin("base") == flag("base"):
        return config.base
    found = asdict(find_base(folder, config.base, f"the run {folder}")) if ranks.first else None
    return WantedBase(**{**ranks.broadcast(found), "fingerprint": None})


def validation_scores(session: Session, data: Data, prompting: Prompting, chat: ChatEncoder | None, limit: int,
                      ranks: Ranks, scoring: str):
    """A function that answers the questions of `data` with the current model and returns EM and F1 in percent."""
    questions = Questions.of(data, session.tokenizer, prompting.template, limit, scoring=scoring, chat=chat)

    def scores() -> dict[str, float]:
        generator = Generator(session.model, session.tokenizer, chat=chat)
        found = questions.score(answer(generator, questions, ranks=ranks).texts)
        return {"exact_match": found.exact_match, "f1": found.f1}

    return scores


def method_of(config: RunConfig, session: Session) -> tuple[RunConfig, Method]:
    """What the run trains, and its settings, with those of an adapter that is already active.

    Raises:
        UserError: settings do not fit the base, or an active adapter.
    """
    adapter = session.adapter
    if config.method == "full":
        if adapter is not None:
            raise UserError("method: full trains the base's own weights, but an adapter is active; train without one.")
        return config, Full(session, WholeModel(session.model))
    if adapter is None:
        adapter = session.add_adapter(lora_config(config, session.model.config.family), seed=config.seed)
    else:
        config = described(config, session, adapter.config)
    if OUTPUT_HEAD in adapter.updates and config.lora_dropout:
        raise UserError(f"lora_dropout: expected 0 where the output head, {OUTPUT_HEAD}, is adapted, as its logits are "
                        f"computed from one matrix; found {config.lora_dropout:g}.")
    return config, Lora(session, adapter)
