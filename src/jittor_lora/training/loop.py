"""The training loop: read it from top to bottom."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Protocol, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.data.examples import TokenGroup, separate
from jittor_lora.data.parts import Part, parts
from jittor_lora.data.stream import Stream, batches, micro_batches
from jittor_lora.errors import Stopped
from jittor_lora.model.causal_lm import CausalLM, check_range
from jittor_lora.ops import frozen
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.ranks import ALONE, Ranks
from jittor_lora.system.runtime import jt
from jittor_lora.training.log import RunLog
from jittor_lora.training.not_finite import MOST_IN_A_ROW, examine
from jittor_lora.training.optimizer import AdamW, clip_scale, gradient_norm
from jittor_lora.training.schedule import learning_rate

STOPPING = b"\nStopping after this step; once more stops at once, without saving.\n"


# About the parameters of one layer.
GRADIENTS_AT_A_TIME = 8


class Trainable(Protocol):
    """What the loop needs of an adapter."""

    def parameters(self) -> dict[str, jt.Var]: ...

    def set_dropout(self, *key: int) -> None: ...


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint holds besides the parameters and the optimiser's moments."""

    step: int = 0
    train_loss: float | None = None  # of the last step
    validation_loss: float | None = None  # the last one
    best_loss: float = math.inf  # lowest validation loss so far
    best_step: int = 0
    validations_since_best: int = 0
    skipped: int = 0  # steps that were left out because their numbers were not finite
    skipped_in_a_row: int = 0  # of them, up to the last step

    @property
    def updates(self) -> int:
        """Steps that changed the parameters."""
        return self.step - self.skipped


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `reason` is "finished", "early stop" or "interrupted", the last by `signal`."""

    progress: Progress
    reason: str
    total_steps: int
    signal: int | None = None


def train(
    model: CausalLM,
    adapter: Trainable,
    groups: Sequence[TokenGroup],
    dev_groups: Sequence[TokenGroup],
    config: RunConfig,
    log: RunLog,
    optimizer: AdamW,
    progress: Progress,
    save: Callable[[Progress], None],
    save_best: Callable[[Progress], None],
    answer_dev: Callable[[], dict[str, float]] | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Train the adapter from where `progress` stands to the end of the run.

    Args:
        model: with the adapter's layers in it; frozen but for them.
        groups, dev_groups: tokenised training and validation examples; the latter may be empty.
        optimizer: over `adapter.parameters()`, with its moments restored if the run is resumed.
        save: writes a checkpoint; called after every `save_every` steps, at an interruption, and at the end.
        save_best: called when the validation loss is the lowest so far.
        answer_dev: other validation metrics by name, such as EM and F1.
        ranks: processes that share the work of each step, all called alike. `log`, `save` and `save_best` are called in
            all of them.

    Raises:
        UserError: the loss or the gradient is no longer a finite number, and `on_non_finite` is "stop", or a parameter
            is none, or as many steps in a row as may be were left out. Nothing has changed since the step before.
    """
    total = total_steps(groups, config)
    reason = "finished"
    parameters = adapter.parameters()
    longest = 0

    def validate(step: int) -> None:
        progress.validation_loss = validation = mean_loss(model, validation_streams, ranks)
        log.validation(step, loss=validation, **(answer_dev() if answer_dev else {}))
        if not math.isfinite(validation):
            log.message(f"step {step}: a validation loss that is not finite is never the best one")
        if math.isfinite(validation) and validation < progress.best_loss:
            progress.best_loss, progress.best_step, progress.validations_since_best = validation, step, 0
            save_best(progress)
        else:
            progress.validations_since_best += 1

    validation_streams = streams_of(dev_groups, config)
    if validation_streams and progress.step == 0:
        validate(0)

    if stalled(progress, config):  # stopped early, and resumed
        return Outcome(progress, "early stop", total)
    stop = None
    with interruption_noticed(quiet=ranks.size > 1) as interrupted:
        for step, batch in steps_from(progress.step, total, groups, config):
            started = time.perf_counter()
            own = parts_of(batch, config, ranks)
            streams = [part.stream for part in own]
            weight, tokens, questions = ranks.totals(sum(s.total_weight for s in streams),
                                                     sum(len(s.tokens) for s in streams),
                                                     sum(len(s.ids) for s in streams))

            def prepare(number: int, stream: Stream, step: int = step, own: Sequence[Part] = own) -> None:
                nonlocal longest
                if len(stream.tokens) > longest:
                    # What shorter streams have freed is too small for this one, and Jittor would hold on to it.
                    longest = len(stream.tokens)
                    jt.gc()
                if config.lora_dropout:
                    adapter.set_dropout(config.seed, step, own[number].number)

            loss, gradients = batch_gradients(model, streams, parameters, prepare, config.label_smoothing, weight)
            loss, gradients = ranks.summed(loss, gradients)
            norm = gradient_norm(gradients)
            rate = learning_rate(step, total_steps=total, peak=config.learning_rate,
                                 warmup_steps=config.warmup(total), schedule=config.schedule,
                                 min_ratio=config.min_learning_rate_ratio)
            skipped = ranks.any(not (math.isfinite(loss) and math.isfinite(norm)))
            if skipped:
                alone = (batch_gradients(model, [stream], parameters, prepare, config.label_smoothing, weight, number)
                         for number, stream in enumerate(streams))
                finding = examine(step + 1, loss, norm, gradients, parameters, model, streams, alone, ranks)
                if config.on_non_finite == "stop" or finding.parameters or \
                        progress.skipped_in_a_row + 1 == MOST_IN_A_ROW:
                    raise finding.error(config, model.precision, progress.skipped_in_a_row)
                log.message(finding.line())
                progress.skipped += 1
                progress.skipped_in_a_row += 1
            else:
                optimizer.step(gradients, rate, clip_scale(norm, config.max_grad_norm))
                progress.skipped_in_a_row = 0
            progress.step, progress.train_loss = step + 1, loss

            log.step(progress.step, loss=loss, learning_rate=rate, grad_norm=norm, tokens=tokens, questions=questions,
                     seconds=time.perf_counter() - started, skipped=skipped)
            adapter.set_dropout()
            last = progress.step == total
            if validation_streams and (last or due(progress.step, config.eval_every)):
                validate(progress.step)
            if stalled(progress, config):
                reason = "early stop"
            elif not last and (stop := ranks.first_of_any(interrupted())):
                reason = "interrupted"
            if last or reason != "finished" or due(progress.step, config.save_every):
                log.sync()
                save(progress)
            if reason != "finished":
                break
        return Outcome(progress, reason, total, stop)


def batch_gradients(model: CausalLM, streams: Sequence[Stream], parameters: Mapping[str, jt.Var],
                    prepare: Callable[[int, Stream], None] = lambda number, stream: None, smoothing: float = 0.0,
                    weight: float | None = None, first: int = 0) -> tuple[float, dict[str, jt.Var]]:
    """The mean loss a label over the streams of a batch, in nats, and its gradient by parameter.

    Of a part of a batch, perhaps without streams, it is what that part adds to both.

    Args:
        prepare: called with each stream and its number before it is read.
        smoothing: of the labels, which the loss then is of too.
        weight: of all labels of the batch; by default of those in `streams`.
        first: number of the first of `streams`.
    """
    weight = sum(stream.total_weight for stream in streams) if weight is None else weight
    loss, gradients = 0.0, None
    for number, stream in enumerate(streams, first):
        prepare(number, stream)
        part = ops.loss_per(stream_loss(model, stream, smoothing), weight)
        found = gradients_of(part, list(parameters.values()))
        gradients = found if gradients is None else [ops.add(g, f) for g, f in zip(gradients, found)]
        jt.sync(gradients)
        loss += part.item()
    if gradients is None:
        gradients = [frozen(np.zeros(p.shape)) for p in parameters.values()]
    return loss, dict(zip(parameters, gradients))


def stream_loss(model: CausalLM, stream: Stream, smoothing: float = 0.0):
    """The weighted sum of the losses of a stream's labels, (1,) float32, in nats.

    Args:
        smoothing: of the labels, see `ops.portable.token_cross_entropy`.

    Raises:
        UserError: a token, label or position that the model does not have.
    """
    check_range("label", stream.labels, model.config.vocab_size)  # end of text may be a label without being an input
    hidden = model.hidden(stream.tokens, stream.positions, stream.layout, stream.label_rows,
                          rows_before=stream.rows_before, label_rows_before=stream.label_rows_before)
    return model.loss(hidden, stream.labels, stream.label_weights, smoothing, stream.label_rows)


def gradients_of(loss, parameters: Sequence[jt.Var]) -> list[jt.Var]:
    """The gradient of `loss` for each parameter, computed from the last parameter to the first.

    That is the order of the backward pass, so what the forward pass kept is freed layer by layer. Asked for all at
    once, Jittor computes the parameters' gradients last and holds everything until then.
    """
    loss.sync()
    gradients = [gradient.stop_grad() for gradient in jt.grad(loss, list(parameters))]
    loss.stop_grad()
    for end in range(len(gradients), 0, -GRADIENTS_AT_A_TIME):
        jt.sync(gradients[max(0, end - GRADIENTS_AT_A_TIME) : end])
    return gradients


def mean_loss(model: CausalLM, streams: Sequence[Stream], ranks: Ranks = ALONE) -> float:
    """The weighted mean loss a label over these streams, in nats; each rank reads some of them."""
    total = 0.0
    with jt.no_grad():
        for stream in ranks.share(streams):
            total += stream_loss(model, stream).item()
    return ranks.totals(total)[0] / sum(stream.total_weight for stream in streams)


def parts_of(groups: Sequence[TokenGroup], config: RunConfig, ranks: Ranks = ALONE) -> list[Part]:
    return parts(groups, config.max_tokens_per_stream, config.prompt_loss_weight, config.share_prefixes, ranks.rank,
                 ranks.size)


def streams_of(groups: Sequence[TokenGroup], config: RunConfig) -> list[Stream]:
    return micro_batches(groups, config.max_tokens_per_stream, config.prompt_loss_weight, config.share_prefixes)


def total_steps(groups: Sequence[TokenGroup], config: RunConfig) -> int:
    """Optimiser steps of the whole run."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round(config.epochs * steps_per_epoch(groups, config)))


def steps_per_epoch(groups: Sequence[TokenGroup], config: RunConfig) -> int:
    questions = sum(len(group.branches) for group in groups)
    return math.ceil(questions / (config.batch_size * config.gradient_accumulation))


def tokens_per_step(groups: Sequence[TokenGroup], config: RunConfig) -> float:
    """Average rows per step, without those computed twice where a paragraph is cut."""
    groups = groups if config.share_prefixes else separate(groups)
    tokens = sum(len(group.prefix) + sum(len(b.prompt) + len(b.completion) - 1 for b in group.branches)
                 for group in groups)
    return tokens / steps_per_epoch(groups, config)


def steps_from(start: int, total: int, groups: Sequence[TokenGroup],
               config: RunConfig) -> Iterator[tuple[int, list[TokenGroup]]]:
    """(step, its examples) for the steps `start` to `total`; the order depends on the seed and the epoch alone."""
    per_epoch, accumulated = steps_per_epoch(groups, config), config.gradient_accumulation
    groups = groups if config.whole_paragraphs else separate(groups)
    epoch, order = -1, []
    for step in range(start, total):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = batches(groups, config.batch_size, config.seed, epoch)
        first = step % per_epoch * accumulated
        yield step, [group for batch in order[first : first + accumulated] for group in batch]


def stalled(progress: Progress, config: RunConfig) -> bool:
    """Has the validation loss not fallen for as many validations as the patience allows?"""
    return config.patience is not None and progress.validations_since_best >= config.patience


def due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0


@contextmanager
def interruption_noticed(quiet: bool = False) -> Iterator[Callable[[], int | None]]:
    """Within the block Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) are only noted, so that the step in hand
    ends; a second one interrupts. What is yielded gives the number of the signal.

    A compiler that Jittor started gets a terminal's Ctrl-C too. The operator then fails, and that interrupts.

    Only the main thread is told of signals and may handle them: in another one nothing is noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    noted = []

    def note(number, frame):
        if noted:
            raise Stopped(number)
        noted.append(number)
        if quiet:
            return
        try:
            os.write(2, STOPPING)  # past the buffer of sys.stderr, in the middle of whose use a handler may run
        except OSError:  # the terminal is gone, and what is still said must not end the run
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup does
    numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))
    before = {number: signal.signal(number, note) for number in numbers}
    for number in before:  # Jittor takes an interrupted wait for the lock on its cache for a failure
        signal.siginterrupt(number, False)
    try:
        yield lambda: noted[0] if noted else None
    except RuntimeError as error:
        if noted:
            raise Stopped(noted[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
