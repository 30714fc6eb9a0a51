"""Training an adapter, from settings to a run folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping, Sequence, Union

import numpy as np

from jittor_lora import __version__
from jittor_lora.data.examples import Data, LengthReport, TokenGroup, training_groups
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.data.special_tokens import special_token_lines, texts_of
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.files.atomic import remove_leftovers
from jittor_lora.formats.base_record import find_base
from jittor_lora.formats.bases import WantedBase
from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.formats.peft import save_adapter
from jittor_lora.formats.training_state import Copies, TrainingState, newest_state, write_state
from jittor_lora.inference.generator import Generator
from jittor_lora.lora.inject import Adapter
from jittor_lora.lora.layer import Update
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.lora.whole import TrainedTensors, WholeModel
from jittor_lora.model.config import tensor_shapes
from jittor_lora.ops.backend import OPERATIONS, has_kernel
from jittor_lora.session import Session, load
from jittor_lora.settings.run import RunConfig, flag
from jittor_lora.system.locks import locked
from jittor_lora.system.ranks import Ranks, join
from jittor_lora.system.runtime import set_threads, system_info, threads
from jittor_lora.tasks.evaluate import Questions, answer
from jittor_lora.tasks.lora_settings import adapter_line, described, lora_config
from jittor_lora.tasks.run_folder import BEST, CHECKPOINTS, PRODUCTS, refuse_a_run, refuse_links
from jittor_lora.tasks.run_values import check_values, progress_of, settings_of, state_of
from jittor_lora.training.log import NoLog, RunLog
from jittor_lora.training.loop import Outcome, Progress, tokens_per_step, total_steps
from jittor_lora.training.loop import train as train_loop
from jittor_lora.training.optimizer import AdamW, loraplus_groups

ARRAYS = "arrays-"  # begins a fingerprint made of arrays
SAME_BITS = ("jittor_lora", "jittor", "onednn", "cpu", "compiler", "cuda")  # of `system_info`: who computes


def train(config: RunConfig, resume: bool = False, session: Session | None = None) -> dict[str, Any]:
    """Train an adapter, or all weights, and leave in `config.output` adapter or model, checkpoints, logs and a summary.

    Under mpirun all ranks call this alike and share each step; the first alone reads and writes `config.output`.

    Args:
        config: with `data` and `output` given.
        resume: go on from the newest checkpoint in the run folder.
        loaded: the base in the precision of `config`, if it is loaded already. An adapter that is active in it is
            trained, and its settings go before those of `config`; without one an adapter is added.

    Returns: the summary, as in summary.json.

    Raises:
        UserError: something that the user can mend; also where another process is at work in the folder, or it holds a
            run that is not to be resumed.
    """
    folder, ranks = Path(config.output), join()
    with locked(folder):
        if ranks.first:
            if not resume:
                refuse_a_run(folder)
            refuse_links(folder)
            remove_leftovers(folder, *(folder / name for name in (CHECKPOINTS, BEST, *PRODUCTS.values())))
        return _train(config, folder, resume, ranks, session)


def _train(config: RunConfig, folder: Path, resume: bool, ranks: Ranks, session: Session | None) -> dict[str, Any]:
    started = time.perf_counter()
    if config.threads:
        set_threads(config.threads)
    train_data = subset(read_data(config, "data", resume), config.max_train, config.seed)
    dev_data = subset(read_data(config, "dev", resume), config.max_dev, config.seed) if config.dev else None
    session = session or load(base_of_run(config, folder, ranks) if resume else config.base, precision=config.precision)
    session.tokenizer.special_tokens = config.special_tokens
    limit = min(session.model.config.max_positions, config.max_tokens or sys.maxsize, config.max_tokens_per_stream)
    template = Template(config.template)
    groups, report = training_groups(train_data, session.tokenizer, template, limit)
    dev_groups, dev_report = training_groups(dev_data, session.tokenizer, template, limit) if dev_data else ([], None)

    config, adapter = trained_part(config, session)
    optimizer = optimizer_of(config, adapter)
    session.model.activation_checkpointing = config.activation_checkpointing
    identities = {"data": identity_of_data(groups), "dev": identity_of_data(dev_groups),
                  "base": identity_of_base(session.checkpoint), "precision": session.model.precision}
    if ranks.size > 1:
        ranks.check_same({"version": __version__, **identities, **config.model_dump(exclude={"threads"})})
    system = system_info()
    progress = Progress()
    notes: list[str] = []
    if resume and ranks.first:
        progress, notes = restore(folder / CHECKPOINTS, adapter, optimizer, config, identities,
                                  {"data": groups, "dev": dev_groups}, system)
    progress = begin_alike(ranks, progress, adapter, optimizer)

    def save(progress: Progress) -> None:
        check_alike(ranks, adapter)
        if not ranks.first:
            return
        arrays = Copies({**{f"adapter.{name}": array for name, array in adapter.parameters().items()},
                         **{f"initial.{name}": array for name, array in adapter.initial().items()},
                         **optimizer.moments()})
        values = {"progress": state_of(progress), "settings": config.model_dump(), **identities, "threads": threads(),
                  "system": system}
        write_state(folder / CHECKPOINTS, progress.step, TrainingState(arrays, values), config.keep_checkpoints)

    def save_best(progress: Progress) -> None:
        if ranks.first:
            write_product(folder / BEST, adapter, session)

    answer_dev = None
    if config.eval_questions:
        answer_dev = validation_scores(session, subset(dev_data, config.eval_questions, config.seed), template, limit,
                                       ranks)

    total = total_steps(groups, config)
    with RunLog(folder, total, tensorboard=config.tensorboard, tokens_per_step=tokens_per_step(groups, config)) \
            if ranks.first else NoLog() as log:
        if resume:
            log.truncate_to(progress.step)
        log.config(config.recipe())
        log.system(system)
        record = session.record(folder)
        if record and ranks.first:
            record.write(folder)
        read = [data for data in (train_data, dev_data) if data]
        for line in (*(f"{data.path}: {describe_data(data)}" for data in read),
                     *introduction(session, adapter, report, dev_report, total),
                     *(line for data in read for line in
                       special_token_lines(texts_of(data), session.tokenizer.special, config.special_tokens)),
                     *notes, *ranks_line(ranks)):
            log.message(line)
        outcome = train_loop(session.model, adapter, groups, dev_groups, config, log, optimizer, progress, save,
                             save_best, answer_dev, ranks)
        if ranks.first:
            write_product(folder / PRODUCTS[config.method], adapter, session)
        summary = summarize(outcome, session, adapter, report, time.perf_counter() - started)
        if outcome.reason == "interrupted":
            summary["signal"] = outcome.signal
        else:
            log.summary(summary)
        log.message(conclusion(outcome, folder, PRODUCTS[config.method]))
    ranks.wait()  # an interrupted rank ends the job, which the first one has to write down before
    return summary


def read_data(config: RunConfig, field: str, resume: bool) -> Data:
    """The examples that the setting `field`, "data" or "dev", names."""
    try:
        return load_data(getattr(config, field), "train" if field == "data" else "dev")
    except UserError as error:
        if resume and config.origin(field) != flag(field):
            raise UserError(f"{error}\nThis is the name in the run to be resumed; if the data has moved, say with "
                            f"{flag(field)} where it is.") from error
        raise


def base_of_run(config: RunConfig, folder: Path, ranks: Ranks) -> str | WantedBase:
    """The base of the run in `folder`, as given, or where its record says. The checkpoint tells if it is another."""
    if config.origin("base") == flag("base"):
        return config.base
    found = asdict(find_base(folder, config.base, f"the run {folder}")) if ranks.first else None
    return WantedBase(**{**ranks.of_first(found), "fingerprint": None})


def begin_alike(ranks: Ranks, progress: Progress, adapter: Union[Adapter, WholeModel], optimizer: AdamW) -> Progress:
    """Give every rank what the first one begins with: trained arrays, what a start took out of the base, the
    optimiser's state. Returns where the run stands."""
    if ranks.size == 1:
        return progress
    adapter.load(ranks.arrays_of_first({name: p.numpy() for name, p in adapter.parameters().items()}))
    adapter.load_initial(ranks.arrays_of_first(adapter.initial()))
    progress = progress_of(ranks.of_first(state_of(progress)))
    if progress.step:
        optimizer.load_state(ranks.arrays_of_first(optimizer.state()), progress.updates)
    return progress


def check_alike(ranks: Ranks, adapter: Union[Adapter, WholeModel]) -> None:
    """
    Raises:
        UserError: what the ranks train has drifted apart.
    """
    if ranks.size == 1:
        return
    norms = ranks.gather([float(np.linalg.norm(p.numpy().astype(np.float64))) for p in adapter.parameters().values()])
    apart = [rank for rank, found in enumerate(norms)
             if not np.allclose(found, norms[0], rtol=1e-4, atol=1e-6, equal_nan=True)]
    if apart:
        raise UserError(f"The parameters on rank {', '.join(map(str, apart))} are no longer those on rank 0; nothing "
                        "was saved. Check the memory of that host and its versions; --resume goes on from the last "
                        "checkpoint.")


def ranks_line(ranks: Ranks) -> list[str]:
    if ranks.size == 1:
        return []
    places = ranks.gather([os.uname().nodename, threads()])
    hosts = {host: [count for at, count in places if at == host] for host, _ in places}
    return ["Ranks: " + ", ".join(f"{len(counts)} on {host} with {'/'.join(map(str, sorted(set(counts))))} thread"
                                  f"{'' if set(counts) == {1} else 's'} each" for host, counts in hosts.items())]


def trained_part(config: RunConfig, session: Session) -> tuple[RunConfig, Union[Adapter, WholeModel]]:
    """What is trained, and the settings as they then are.

    Raises:
        UserError: settings do not fit the base, or an adapter that is active in it.
    """
    adapter = session.adapter
    if config.method == "full":
        if adapter is not None:
            raise UserError("method: full trains the base's own weights, and an adapter is active; train without one.")
        return config, WholeModel(session.model)
    if adapter is None:
        adapter = session.add_adapter(lora_config(config, session.model.config.family), seed=config.seed)
    else:
        config = described(config, session, adapter.config)
    if OUTPUT_HEAD in adapter.updates and config.lora_dropout:
        raise UserError(f"lora_dropout: expected 0 where the output head, {OUTPUT_HEAD}, is adapted, as its logits are "
                        f"computed from one matrix; found {config.lora_dropout:g}.")
    return config, adapter


def optimizer_of(config: RunConfig, adapter: Union[Adapter, WholeModel]) -> AdamW:
    parameters, rates, undecayed = adapter.parameters(), {}, set()
    if config.loraplus_lr_ratio is not None:
        rates, undecayed = loraplus_groups(parameters, config.loraplus_lr_ratio,
                                           config.loraplus_lr_embedding / config.learning_rate)
    return AdamW(parameters, (config.adam_beta1, config.adam_beta2), config.adam_epsilon, config.weight_decay, rates,
                 undecayed)


def identity_of_data(groups: Sequence[TokenGroup]) -> str:
    """A fingerprint of tokenised examples: SHA-256 of their ids and tokens, and of where each part ends."""
    parts = [part for group in groups
             for part in (group.prefix, *(tokens for b in group.branches for tokens in (b.prompt, b.completion)))]
    names = [branch.id.encode() for group in groups for branch in group.branches]
    sizes = [[len(group.branches) for group in groups], list(map(len, parts)), list(map(len, names))]
    digest = hashlib.sha256()
    for numbers in (list(map(len, sizes)), *sizes, list(itertools.chain.from_iterable(parts))):
        digest.update(np.asarray(numbers, "<i8"))
    digest.update(b"".join(names))
    return ARRAYS + digest.hexdigest()


def is_identity_of_data(identity: str, groups: Sequence[TokenGroup]) -> bool:
    """Is it the fingerprint of these examples? Also one of an earlier version's checkpoint, which was made of JSON."""
    if identity.startswith(ARRAYS):
        return identity == identity_of_data(groups)
    digest = hashlib.sha256()
    for group in groups:
        digest.update(json.dumps(asdict(group)).encode())
    return identity == digest.hexdigest()


def identity_of_base(checkpoint: Checkpoint) -> str:
    """A fingerprint of the configuration and all weights."""
    digest = hashlib.sha256(json.dumps(checkpoint.config.source, sort_keys=True, default=str).encode())
    for name in tensor_shapes(checkpoint.config):
        digest.update(np.ascontiguousarray(checkpoint.tensors[name]))
    return digest.hexdigest()


def subset(data: Data, count: int | None, seed: int) -> Data:
    return data if count is None else data.subset(count, seed)


def restore(checkpoints: Path, adapter: Union[Adapter, WholeModel], optimizer: AdamW, config: RunConfig,
            identities: Mapping[str, str], examples: Mapping[str, Sequence[TokenGroup]],
            system: Mapping[str, Any]) -> tuple[Progress, list[str]]:
    """Set adapter and optimiser, and the number of threads where it matters, to the newest readable checkpoint; where
    the run stands, and notes for the log.

    Args:
        config: whose settings must be those in the checkpoint, as far as they matter.
        identities: the fingerprint of "base", and the "precision" computed in; likewise.
        examples: those of "data" and "dev"; likewise.
        system: what is used now, see `system_info`; a difference is only noted.

    Raises:
        UserError: no checkpoint can be read, or the run began otherwise; all differences are listed.
    """
    found = newest_state(checkpoints)
    if found is None:
        return Progress(), [f"{checkpoints}: no checkpoint yet; starting from the beginning."]
    path, state, skipped = found
    check_values(path, state.values)
    needed = state.values["threads"] if depends_on_threads(adapter) else None
    refuse_another_run(path, state, config, identities, examples, needed)
    progress = progress_of(state.values["progress"])
    try:
        adapter.load(_below("adapter.", state.arrays))
        adapter.load_initial(_below("initial.", state.arrays))
        optimizer.load_state(state.arrays, progress.updates)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    notes = [f"Skipped: {reason}" for reason in skipped]
    if needed is not None and needed != threads():
        set_threads(needed)
        notes.append(f"Threads: {needed}, with which this run began and on which its numbers depend.")
    changed = [f"{name} {state.values['system'].get(name)} in the run, now {system[name]}" for name in SAME_BITS
               if state.values["system"].get(name) != system[name]]
    if changed:
        notes.append(f"The last digits may differ from those of a run that was not interrupted: {'; '.join(changed)}.")
    return progress, [*notes, f"Going on from {path}."]


def depends_on_threads(adapter: Union[Adapter, WholeModel]) -> bool:
    """Does a part of the training run on stock operators? oneDNN cuts the sums of theirs by the number of threads."""
    if isinstance(adapter, WholeModel) or not all(map(has_kernel, OPERATIONS)):
        return True
    return OUTPUT_HEAD in adapter.updates or not all(
        type(version) is Update and version.initial is None and version.trained.keys() == {"lora_A", "lora_B"}
        for version in adapter.versions.values())


def refuse_another_run(path: Path, state: TrainingState, config: RunConfig, identities: Mapping[str, str],
                       examples: Mapping[str, Sequence[TokenGroup]], needed_threads: int | None) -> None:
    """
    Args:
        needed_threads: number of threads on which the numbers of the run depend.

    Raises:
        UserError: the checkpoint is of a run that began with other settings, another base or other data.
    """
    before = state.values
    differences = config.differences(settings_of(path, before))
    if before["base"] != identities["base"]:
        differences.append(f"the base is not the one that this run began with ({config.base}); put it "
                           "back, or say with --base where it is")
    for name, what in (("data", "training"), ("dev", "validation")):
        if not is_identity_of_data(before[name], examples[name]):
            differences.append(f"the {what} examples are not those that this run began with ({getattr(config, name)}); "
                               "put the data file, the tokenizer and the template back, or say with "
                               f"{flag(name)} where the file is")
    if before["precision"] != identities["precision"]:
        differences.append(f"the run began in {before['precision']}, and here the base is computed in "
                           f"{identities['precision']}; go on where {before['precision']} works")
    if needed_threads is not None and config.threads not in (None, needed_threads):
        differences.append(f"threads ({config.origin('threads')}): {needed_threads} in the run, now {config.threads}; "
                           "what it trains is computed with other last digits on another number of them")
    if differences:
        raise UserError("\n  ".join([f"{path}: a run goes on as it began; these differ:", *differences]) +
                        "\nMend them, or start a new run in another folder.")


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name[len(prefix):]: array for name, array in arrays.items() if name.startswith(prefix)}


def write_product(folder: Path, adapter: Union[Adapter, WholeModel], session: Session) -> None:
    """An adapter in PEFT's layout, or a whole model as a Hugging Face directory."""
    if isinstance(adapter, WholeModel):
        base = session.checkpoint
        tensors = TrainedTensors(base.tensors, session.model)
        session.tokenizer.save(folder)  # config.json, which makes the folder a model, comes last
        write_checkpoint(folder, Checkpoint(base.config, tensors, base.generation_config), overwrite=True)
    else:
        save_adapter(folder, adapter, session.record(folder) or session.base.name, session.model.config.family)


def validation_scores(session: Session, data: Data, template: Template, limit: int, ranks: Ranks):
    """A function that answers the questions of `data` with the model as it is then, and gives EM and F1 in percent."""
    questions = Questions.of(data, session.tokenizer, template, limit)

    def scores() -> dict[str, float]:
        found = questions.score(answer(Generator(session.model, session.tokenizer), questions, ranks=ranks))
        return {"exact_match": found.exact_match, "f1": found.f1}

    return scores


def introduction(session: Session, adapter: Union[Adapter, WholeModel], report: LengthReport,
                 dev_report: LengthReport | None, total: int) -> list[str]:
    lines = [f"Base: {session.base.description}", f"Tokenizer: {session.tokenizer.origin}",
             *trained_lines(session, adapter)]
    lines += [f"Training data: {line}" for line in report.lines()]
    if dev_report:
        lines += [f"Validation data: {line}" for line in dev_report.lines()]
    return [*lines, f"Steps: {total:,}." + (" The first one takes longer where Jittor still compiles operators."
                                            if depends_on_threads(adapter) else "")]


def trained_lines(session: Session, adapter: Union[Adapter, WholeModel]) -> list[str]:
    if isinstance(adapter, WholeModel):
        size = 4 * adapter.count() / 2**30
        return [f"Trainable: all {adapter.count():,} parameters, in float32",
                f"Memory: {4 * size:.1f} GiB for weights, gradients and AdamW's two moments, besides activations; a "
                f"checkpoint takes {3 * size:.1f} GiB of disk, the model {size:.1f} GiB"]
    whole = adapter.count() + sum(math.prod(shape) for shape in tensor_shapes(session.model.config).values())
    return [f"Trainable: {adapter.count():,} of {whole:,} parameters ({100 * adapter.count() / whole:.2f} %) in "
            f"{len(adapter.versions)} modules", f"Adapter: {adapter_line(adapter.config)}"]


def summarize(outcome: Outcome, session: Session, adapter: Union[Adapter, WholeModel], report: LengthReport,
              seconds: float) -> dict:
    progress = outcome.progress
    validated = math.isfinite(progress.best_loss)
    return {
        "ended": outcome.reason,
        "base": session.base.name,
        "steps": progress.step,
        "total_steps": outcome.total_steps,
        "train_loss": progress.train_loss,
        "validation_loss": progress.validation_loss,
        "best_validation_loss": progress.best_loss if validated else None,
        "best_step": progress.best_step if validated else None,
        "skipped_steps": progress.skipped,
        "trainable_parameters": adapter.count(),
        "adapter": None if isinstance(adapter, WholeModel) else adapter_line(adapter.config),
        "training_examples": report.kept,
        "seconds": round(seconds, 3),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def conclusion(outcome: Outcome, folder: Path, product: str = "adapter") -> str:
    if outcome.reason == "interrupted":
        return f"Interrupted after step {outcome.progress.step} and saved."
    progress, stopped = outcome.progress, " (stopped early)" if outcome.reason == "early stop" else ""
    text = f"Done after step {progress.step}{stopped}: {folder / product}"
    if progress.skipped:
        text += f"; {progress.skipped} steps were left out because their numbers were not finite, see run.log"
    if math.isfinite(progress.best_loss) and progress.best_step < progress.step:
        text += f"; the lowest validation loss was at step {progress.best_step}: {folder / 'best'}"
    return text
