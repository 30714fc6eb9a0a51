"""The checks of the first backward pass and the first update."""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

from jittor_lora.alignment.distance import arrays_apart, largest, origin
from jittor_lora.alignment.optimizer import why_updates_differ
from jittor_lora.alignment.record import Record
from jittor_lora.alignment.result import Check, made, not_compared

GRADIENT, UPDATED = "gradient.", "updated."
_SAME_FACTOR = 1e-3


def check_gradients(here: Record, there: Record, most: float) -> Check:
    """Gradients of the first batch before clipping, in the order of the backward pass."""
    ours, theirs = here.first_step, there.first_step
    names = _names(GRADIENT, ours, theirs)[::-1]
    if not names:
        return not_compared("gradients", most, "no_gradients")
    rows = arrays_apart(ours, theirs, names)
    shown = tuple((name[len(GRADIENT):], value) for name, value in rows)
    at = origin([value for _, value in rows], most)
    if at is None:
        return made("gradients", most, shown, largest(shown)[0])
    name = names[at]
    if name not in ours or name not in theirs:
        return made("gradients", most, shown, shown[at][0], "only_there" if name not in ours else "only_here")
    factor = _common_factor([(ours[name], theirs[name]) for name in names if name in ours and name in theirs])
    if factor is not None and abs(factor - 1) > most:
        return made("gradients", most, shown, shown[at][0], "gradient_factor", factor=f"{factor:.4g}")
    return made("gradients", most, shown, shown[at][0], "gradient")


def _common_factor(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Optional[float]:
    """By what all arrays of the first side are to be multiplied to give those of the second; None if nothing is."""
    pairs = [(a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)) for a, b in pairs
             if a.shape == b.shape]
    if not pairs:
        return None
    first, second = map(np.concatenate, zip(*pairs))
    square = first @ first
    factor = first @ second / square if square and np.isfinite(second).all() and np.isfinite(square) else 0.0
    if not factor or np.linalg.norm(second - factor * first) > _SAME_FACTOR * np.linalg.norm(second):
        return None
    return float(factor)


def check_first_update(here: Record, there: Record, most: float) -> Check:
    """What the first update adds to each array."""
    names = [name[len(UPDATED):] for name in _names(UPDATED, here.first_step, there.first_step)]
    if not names:
        return not_compared("first_update", most, "no_update")
    updates = [_updates(side, names) for side in (here, there)]
    rows = arrays_apart(*updates, names)
    if largest(rows)[1] <= most:
        return made("first_update", most, rows, largest(rows)[0])
    where = next(name for name, value in rows if not value <= most)
    if any(where not in side for side in updates):
        return made("first_update", most, rows, where, "only_there" if where not in updates[0] else "only_here")
    gradients = [{name: side.first_step[GRADIENT + name] for name in names if GRADIENT + name in side.first_step}
                 for side in (here, there)]
    reason, values = why_updates_differ(here.initial_adapter, updates, gradients, here.steps[0].grad_norm)
    return made("first_update", most, rows, where, reason, **values)


def _updates(side: Record, names: Sequence[str]) -> dict[str, np.ndarray]:
    found = {}
    for name in names:
        after, before = side.first_step.get(UPDATED + name), side.initial_adapter.get(name)
        if after is not None and before is not None and after.shape == before.shape:
            found[name] = np.asarray(after, np.float64) - before
    return found


def _names(kind: str, ours, theirs) -> list[str]:
    return list(dict.fromkeys(name for side in (ours, theirs) for name in side if name.startswith(kind)))
