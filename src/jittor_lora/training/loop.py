"""The training loop: read it from top to bottom."""

from __future__ import annotations

import math
import time
from typing import Callable, Sequence

from jittor_lora.data.groups import TokenGroup
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.ranks import ALONE, Ranks
from jittor_lora.training.batches import due, steps_from, streams_of, total_steps
from jittor_lora.training.gradients import mean_loss
from jittor_lora.training.interruption import interruption_noticed
from jittor_lora.training.log import RunLog
from jittor_lora.training.not_finite import examine
from jittor_lora.training.optimizer import AdamW, clip_scale
from jittor_lora.training.progress import Outcome, Progress
from jittor_lora.training.schedule import learning_rate
from jittor_lora.training.step import Computation
from jittor_lora.training.trainable import Trainable


def train(
    model: CausalLM,
    trainable: Trainable,
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
    """Train from where `progress` stands to the end of the run.

    Args:
        model: with the trainable arrays in it; everything else is frozen.
        groups, dev_groups: tokenised training and validation examples; the latter may be empty.
        optimizer: over `trainable.parameters()`, with its moments restored if the run is resumed.
        save: writes a checkpoint; called after every `save_every` steps, at an interruption, and at the end.
        save_best: called when the validation loss is the lowest so far.
        answer_dev: other validation metrics by name, such as EM and F1.
        ranks: the processes that share the work; by default this one alone.

    Raises:
        UserError: loss or gradient is not finite, and the run may not continue without this step (see `Finding.error`).
            Nothing has changed since the step before.
    """
    total = total_steps(groups, config)
    compute = Computation(model, trainable, config, ranks)
    dev_streams = streams_of(dev_groups, config)

    def validate() -> None:
        loss = mean_loss(model, dev_streams, ranks)
        log.validation(progress.step, loss=loss, **(answer_dev() if answer_dev else {}))
        if not math.isfinite(loss):
            log.message(f"step {progress.step}: a validation loss that is not finite never counts as the best")
        if progress.note_validation(loss):
            save_best(progress)

    if dev_streams and progress.step == 0:
        validate()
    if progress.stalled(config.patience):  # a run that stopped early is resumed
        return Outcome(progress, "early stop", total)

    reason = "finished"
    with interruption_noticed(ranks) as interrupted:
        for number, batch in steps_from(progress.step, total, groups, config):
            started = time.perf_counter()
            step = compute.step(number, batch)
            rate = learning_rate(number, total_steps=total, peak=config.learning_rate,
                                 warmup_steps=config.warmup(total), schedule=config.schedule,
                                 min_ratio=config.min_learning_rate_ratio)
            if step.is_finite:
                optimizer.step(step.gradients, rate, clip_scale(step.norm, config.max_grad_norm))
            else:
                finding = examine(step, compute)
                if finding.stops(config, progress.skipped_in_a_row):
                    raise finding.error(config, progress.skipped_in_a_row)
                log.message(finding.line())
            progress.note_step(step.loss, skipped=not step.is_finite)
            log.step(progress.step, loss=step.loss, learning_rate=rate, grad_norm=step.norm, tokens=step.tokens,
                     questions=step.questions, seconds=time.perf_counter() - started, skipped=not step.is_finite)

            last = progress.step == total
            if dev_streams and (last or due(progress.step, config.eval_every)):
                validate()
            if progress.stalled(config.patience):
                reason = "early stop"
            elif not last and interrupted():
                reason = "interrupted"
            if last or reason != "finished" or due(progress.step, config.save_every):
                log.sync()
                save(progress)
            if reason != "finished":
                break
        return Outcome(progress, reason, total, interrupted())
