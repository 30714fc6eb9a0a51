"""The checks of the first backward pass and the first update."""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence

import numpy as np

from jittor_lora.alignment.distance import SMALL_SHARE, arrays_apart, largest, origin
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


class Values(NamedTuple):
    """Of one array, those that are compared, (n,): where it starts, and gradients and first updates of both sides."""

    start: np.ndarray
    gradients: tuple[np.ndarray, np.ndarray]
    updates: tuple[np.ndarray, np.ndarray]


def check_first_update(here: Record, there: Record, most: float) -> Check:
    """What the first update adds to each array, but for values whose gradient is as good as zero: Adam's update is as
    large for them as for others, and rounding decides its sign."""
    names = [name[len(UPDATED):] for name in _names(UPDATED, here.first_step, there.first_step)]
    if not names:
        return not_compared("first_update", most, "no_update")
    values = {name: found for name in names for found in [_values(here, there, name)] if found is not None}
    updates, gradients = ([{name: getattr(one, kind)[side] for name, one in values.items()} for side in (0, 1)]
                          for kind in ("updates", "gradients"))
    rows = arrays_apart(*updates, names)
    if largest(rows)[1] <= most:
        return made("first_update", most, rows, largest(rows)[0])
    where = next(name for name, value in rows if not value <= most)
    for side, reason in ((here, "only_there"), (there, "only_here")):
        if where not in side.initial_adapter or UPDATED + where not in side.first_step:
            return made("first_update", most, rows, where, reason)
    start = {name: one.start for name, one in values.items()}
    reason, told = why_updates_differ(start, updates, gradients, here.steps[0].grad_norm)
    return made("first_update", most, rows, where, reason, **told)


def _values(here: Record, there: Record, name: str) -> Optional[Values]:
    """None if a side lacks the array, or has it in another shape."""
    starts = [side.initial_adapter.get(name) for side in (here, there)]
    ends = [side.first_step.get(UPDATED + name) for side in (here, there)]
    if any(array is None for array in (*starts, *ends)) or len({array.shape for array in (*starts, *ends)}) > 1:
        return None
    slopes = [side.first_step.get(GRADIENT + name, np.zeros_like(starts[0])) for side in (here, there)]
    if any(g.shape != starts[0].shape for g in slopes):
        return None
    updates = [np.asarray(end, np.float64) - start for start, end in zip(starts, ends)]
    least = SMALL_SHARE * np.sqrt(np.mean(np.square(slopes, dtype=np.float64)))
    near_zero = (np.minimum(*np.abs(slopes)) < least) & np.isfinite(updates[0]) & np.isfinite(updates[1])
    first, second = ((g[~near_zero], update[~near_zero]) for g, update in zip(slopes, updates))
    return Values(starts[0][~near_zero], (first[0], second[0]), (first[1], second[1]))


def _names(kind: str, ours, theirs) -> list[str]:
    return list(dict.fromkeys(name for side in (ours, theirs) for name in side if name.startswith(kind)))
