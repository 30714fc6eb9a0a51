"""Resuming a run: the newest checkpoint, if the run is still the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.formats.training_state import TrainingState, newest_state
from jittor_lora.settings.run import RunConfig, flag
from jittor_lora.system.runtime import set_threads, threads
from jittor_lora.tasks.fingerprints import Sources, is_identity_of_data
from jittor_lora.tasks.methods import Method
from jittor_lora.tasks.run_cost import Cost, cost_of
from jittor_lora.tasks.run_values import check_values, progress_of, settings_of
from jittor_lora.training.optimizer import AdamW
from jittor_lora.training.progress import Progress

SAME_BITS = ("jittor_lora", "jittor", "onednn", "cpu", "compiler", "cuda")  # of `system_info`: what the bits depend on


def restore(checkpoints: Path, method: Method, optimizer: AdamW, config: RunConfig, sources: Sources,
            system: Mapping[str, Any]) -> tuple[Progress, Cost, list[str]]:
    """Load the newest readable checkpoint into what is trained and the optimiser; where bits depend on the number of
    threads, set that too. Returns where the run stands, what it has cost, and notes for the log.

    Args:
        config: must agree with the checkpoint's settings as far as they matter.
        sources: likewise.
        system: see `system_info`; differences are only noted.

    Raises:
        UserError: no checkpoint can be read, or the run was started differently; all differences are listed.
    """
    found = newest_state(checkpoints)
    if found is None:
        return Progress(), Cost(), [f"{checkpoints}: no checkpoint yet; starting from the beginning."]
    path, state, skipped = found
    check_values(path, state.values)
    needed = state.values["threads"] if method.depends_on_threads() else None
    refuse_another_run(path, state, config, sources, needed)
    progress = progress_of(state.values["progress"])
    try:
        method.trainable.load(_below("adapter.", state.arrays))
        method.trainable.load_initial(_below("initial.", state.arrays))
        optimizer.load_state(state.arrays, progress.updates)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    cost = cost_of(state.values.get("cost"))
    notes = [f"Skipped: {reason}" for reason in skipped]
    if needed is not None and needed != threads():
        set_threads(needed)
        notes.append(f"Threads: {needed}, as at the start of this run, since its numbers depend on them.")
    if cost is None:
        notes.append("The checkpoint does not say what the run has cost so far; seconds and peak memory in the summary "
                     "count from here.")
    changed = [f"{name} {state.values['system'].get(name)} in the run, now {system[name]}" for name in SAME_BITS
               if state.values["system"].get(name) != system[name]]
    if changed:
        notes.append(f"The last digits may differ from those of an uninterrupted run: {'; '.join(changed)}.")
    return progress, cost or Cost(), [*notes, f"Resuming from {path}."]


def refuse_another_run(path: Path, state: TrainingState, config: RunConfig, sources: Sources,
                       needed_threads: int | None) -> None:
    """
    Args:
        needed_threads: number of threads that the run's numbers depend on.

    Raises:
        UserError: the checkpoint is of a run with other settings, another base or other data.
    """
    before = state.values
    differences = config.differences(settings_of(path, before))
    if before["base"] != sources.base:
        differences.append(f"the base is not the one this run was started with ({config.base}); put it back, or say "
                           "with --base where it is")
    for name, kind, groups in (("data", "training", sources.data), ("dev", "validation", sources.dev)):
        if not is_identity_of_data(before[name], groups):
            differences.append(f"the {kind} examples are not those this run was started with ({getattr(config, name)})"
                               "; put the data file, the tokenizer and the template back, or say with "
                               f"{flag(name)} where the file is")
    if before["precision"] != sources.precision:
        differences.append(f"the run was started in {before['precision']}, but here the base is computed in "
                           f"{sources.precision}; resume where {before['precision']} works")
    if needed_threads is not None and config.threads not in (None, needed_threads):
        differences.append(f"threads ({config.origin('threads')}): {needed_threads} in the run, now {config.threads}; "
                           "the last digits of what it trains depend on their number")
    if differences:
        raise UserError("\n  ".join([f"{path}: a run is resumed as it was started; these differ:", *differences]) +
                        "\nFix them, or start a new run in another folder.")


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name[len(prefix):]: array for name, array in arrays.items() if name.startswith(prefix)}
