"""Before a run: does it fit, how long will it take, and what to change if it does not fit.

Everything up to the first step is done as `train` does it; then a few real steps are taken and thrown away.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from jittor_lora.errors import UserError
from jittor_lora.formats.bases import ResolvedBase, load_base, resolve_base
from jittor_lora.formats.quantised_base import bytes_in
from jittor_lora.formats.quantised_file import FORMATS
from jittor_lora.ops import training_precision
from jittor_lora.settings.run import RunConfig, flag
from jittor_lora.system import memory
from jittor_lora.system.runtime import threads
from jittor_lora.tasks.answering import BATCH_SIZE
from jittor_lora.tasks.plan_trial import Trial
from jittor_lora.tasks.plan_work import Work, work_of
from jittor_lora.tasks.questions import Questions
from jittor_lora.tasks.train import Prepared, prepare, subset
from jittor_lora.training.batches import due

ROOM = 0.95  # share of the available memory that a run may take
BYTES_TRAINED = 16  # of a trained value: itself, its gradient, AdamW's two moments, in float32
BYTES_SAVED = 12  # of a trained value in a checkpoint


@dataclass(frozen=True)
class Change:
    """Other settings with which the run takes less memory.

    Attributes:
        settings: name → value.
        memory: estimated peak, bytes.
        time_factor: time of a step, as a multiple of that without the change.
    """

    settings: Mapping[str, object]
    memory: int
    time_factor: float


@dataclass(frozen=True)
class Plan:
    """What a run will take. Times are in seconds, sizes in bytes, tokens are rows computed.

    Attributes:
        examples, longest_example: their number, and the tokens of the longest.
        steps, tokens, scored_tokens: of the whole run.
        longest_stream: tokens of the longest forward pass.
        precision: of matrix products; `precision_wanted` by the settings.
        seconds: of the whole run: the sum of `seconds_by`, by part.
        tokens_per_second: in steps, from `steps_measured` of them.
        memory: the peak, by part in `memory_by`; measured, or estimated where the longest stream would not fit.
        memory_available: of this machine or container, for this process.
        disk, disk_free: what the run leaves at its end or needs for a moment.
        fits: memory and disk suffice.
        changes: what to change where memory does not suffice; empty too if nothing helps.
    """

    examples: int
    longest_example: int
    steps: int
    tokens: int
    scored_tokens: int
    longest_stream: int
    precision: str
    precision_wanted: str
    threads: int
    seconds: float
    seconds_by: Mapping[str, float]
    tokens_per_second: float
    steps_measured: int
    validations: int
    checkpoints: int
    memory: int
    memory_by: Mapping[str, int]
    memory_measured: bool
    memory_available: int
    disk: int
    disk_free: int
    fits: bool
    changes: Sequence[Change]


def plan(config: RunConfig, available: Optional[int] = None) -> Plan:
    """Measure what the run of these settings will take. Nothing is written; `config.output` may be unset.

    Args:
        available: bytes of memory for this process; by default what it has and can still get.

    Raises:
        UserError: as `train`, of which everything but the run folder is checked.
    """
    available = memory.available() + memory.resident() if available is None else available
    started = time.perf_counter()
    base = resolve_base(config.base)
    _refuse_too_large(base, "fp32" if config.method == "full" else config.base_precision, available)
    ready = prepare(config, base=lambda: base)
    prepared, loading = time.perf_counter() - started, memory.peak()
    work = work_of(ready.groups, ready.dev_groups, ready.config)
    trial = Trial(ready, work)

    resting, once = trial.warm_up()
    room = int(ROOM * available) - resting
    activations, measured = trial.activations(room)
    speed = trial.steps() if measured else trial.small_steps()
    validation = trial.validation(_questions(ready), config.eval_questions) if work.dev_rows and measured else 0.0
    saved = BYTES_SAVED * ready.method.trainable.count() + sum(
        array.nbytes for array in ready.method.trainable.initial().values())
    saving = trial.saving(saved)

    validations = _validations(work.steps, config) if work.dev_rows else 0
    checkpoints = math.ceil(work.steps / config.save_every) if config.save_every else 1
    seconds = {"start": prepared + once,
               "steps": work.rows * speed.seconds_per_row + work.steps * speed.seconds_per_update,
               "validation": validations * validation,
               "saving": saving * (checkpoints + (validations + 1) / 3)}  # best and last, without the moments
    peak = max(loading, resting + activations, memory.peak() if measured else 0)
    disk, free = _disk(config, saved, checkpoints, bool(work.dev_rows))
    trained = BYTES_TRAINED * ready.method.trainable.count()
    fits = activations <= room and peak <= available  # validation may take more than a step
    return Plan(
        examples=ready.report.kept, longest_example=work.longest_example, steps=work.steps, tokens=work.rows,
        scored_tokens=work.labels, longest_stream=work.longest.rows, precision=ready.session.model.precision,
        precision_wanted=training_precision(config.precision) if config.method == "full" else config.precision,
        threads=threads(),
        seconds=sum(seconds.values()), seconds_by=seconds, tokens_per_second=1 / speed.seconds_per_row,
        steps_measured=speed.steps, validations=validations, checkpoints=checkpoints, memory=peak,
        memory_by={"base": resting - trained, "trained": trained, "activations": activations}, memory_measured=measured,
        memory_available=available, disk=disk, disk_free=free, fits=fits and disk <= free,
        changes=() if fits else _changes(trial, work, config, resting, room))


def _refuse_too_large(base: ResolvedBase, precision: str, available: int) -> None:
    """
    Args:
        precision: of the base's weights.

    Raises:
        UserError: the weights alone do not fit.
    """
    checkpoint = load_base(base, say=lambda text: None)[0]
    weights = bytes_in(checkpoint, precision)
    if weights > available:
        smaller = [f"{flag('base_precision')} {name}" for name in FORMATS if bytes_in(checkpoint, name) <= available]
        raise UserError(f"{base.name}: its weights alone take {weights / 2**30:.1f} GiB in memory, of which "
                        f"{available / 2**30:.1f} GiB are available. Take {', '.join([*smaller, 'a smaller base'])} or "
                        "a larger machine.")


def _questions(ready: Prepared) -> Optional[Questions]:
    """Some of the questions that a validation answers."""
    if not ready.config.eval_questions or ready.dev_data is None:
        return None
    data = subset(ready.dev_data, min(ready.config.eval_questions, BATCH_SIZE), ready.config.seed)
    return Questions.of(data, ready.session.tokenizer, ready.prompting.template, ready.limit,
                        scoring=ready.config.scoring, chat=ready.chat)


def _validations(steps: int, config: RunConfig) -> int:
    """Before the first step, every `eval_every` steps, and after the last."""
    return 2 + sum(due(step, config.eval_every) for step in range(1, steps))


def _disk(config: RunConfig, saved: int, checkpoints: int, best: bool) -> tuple[int, int]:
    """Bytes that the run folder needs, and those free there. A checkpoint is written beside the ones that it replaces;
    what is trained is saved without moments, for the end and for the best."""
    needed = saved * (min(checkpoints, config.keep_checkpoints) + 1) + saved // 3 * (1 + best)
    place = Path(config.output or ".").absolute()
    while not place.exists():
        place = place.parent
    return needed, shutil.disk_usage(place).free


def _changes(trial: Trial, work: Work, config: RunConfig, resting: int, room: int) -> list[Change]:
    """Shorter streams, activation checkpointing, or both: whatever fits, the quickest first."""
    found = []
    for checkpointing in (False, True) if not config.activation_checkpointing else (False,):
        line, factor = trial.line(checkpointing)
        rows = min(work.longest.rows, line.rows_for(room))
        settings = {"activation_checkpointing": True} if checkpointing else {}
        if rows < work.longest.rows:
            rows = rows // 8 * 8
            settings["max_tokens_per_stream"] = rows
        if rows >= work.longest_example and settings:
            found.append(Change(settings, resting + line.at(rows), factor))
    return found
