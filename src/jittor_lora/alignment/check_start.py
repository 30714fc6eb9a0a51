"""The checks of what both sides start from: data, base, initial adapter."""

from __future__ import annotations

import math
from typing import Mapping

import numpy as np

from jittor_lora.alignment.distance import arrays_apart, largest, relative_number
from jittor_lora.alignment.record import Record
from jittor_lora.alignment.result import Check, made


def check_data(here: Record, there: Record, most: float) -> Check:
    """Numbers of steps and held-out texts, ids of the questions."""
    steps, texts = (len(here.steps), len(there.steps)), (len(here.held_out), len(there.held_out))
    ids = here.answers.keys() ^ there.answers.keys()
    rows = (("steps", float(abs(steps[0] - steps[1]))), ("held-out texts", float(abs(texts[0] - texts[1]))),
            ("questions", float(len(ids))))
    for reason, counts in (("steps_count", steps), ("texts_count", texts)):
        if counts[0] != counts[1]:
            return made("data", most, rows, reason=reason, here=f"{counts[0]:,}", there=f"{counts[1]:,}")
    if ids:
        return made("data", most, rows, where=min(ids), reason="ids", count=f"{len(ids):,}")
    return made("data", most, rows)


def check_base(here: Record, there: Record, most: float) -> Check:
    """Shape, sum and norm of every tensor of the base."""
    names = list(dict.fromkeys((*here.base, *there.base)))
    rows = tuple((name, _tensors_apart(here.base.get(name), there.base.get(name))) for name in names)
    name, found = largest(rows)
    if found <= most:
        return made("base", most, rows, where=name)
    name = next(name for name, value in rows if not value <= most)
    ours, theirs = here.base.get(name), there.base.get(name)
    if ours is None or theirs is None:
        return made("base", most, rows, name, "only_there" if ours is None else "only_here")
    if ours[0] != theirs[0]:
        reason = "base_transposed" if ours[0] == theirs[0][::-1] else "shapes"
        return made("base", most, rows, name, reason, here=str(ours[0]), there=str(theirs[0]))
    zero_here, zero_there = (not side[2] for side in (ours, theirs))
    if zero_here or zero_there:
        return made("base", most, rows, name, "zeros_here" if zero_here else "zeros_there")
    return made("base", most, rows, name, "base_values", here=f"{ours[2]:.6g}", there=f"{theirs[2]:.6g}")


def _tensors_apart(first, second) -> float:
    """The norms' relative difference or, if larger, that of the sums to ‖·‖ √size, which bounds a sum."""
    if first is None or second is None or first[0] != second[0]:
        return math.inf
    (shape, sum_1, norm_1), (_, sum_2, norm_2) = first, second
    if not all(map(math.isfinite, (sum_1, norm_1, sum_2, norm_2))):
        return math.inf
    bound = max(norm_1, norm_2) * math.sqrt(math.prod(shape))
    return max(relative_number(norm_1, norm_2), abs(sum_1 - sum_2) / bound if bound else 0.0)


def check_initial_adapter(here: Record, there: Record, most: float) -> Check:
    """A, B and what else is trained, before training; and alpha / r."""
    ours, theirs = here.initial_adapter, there.initial_adapter
    names = list(dict.fromkeys((*ours, *theirs)))
    scalings = {module: (here.initial_scaling.get(module, math.nan), there.initial_scaling.get(module, math.nan))
                for module in dict.fromkeys((*here.initial_scaling, *there.initial_scaling))}
    arrays = arrays_apart(ours, theirs, names)
    rows = (*arrays, *((f"{module}: alpha / r", relative_number(*pair)) for module, pair in scalings.items()))
    wrong = next((name for name, value in arrays if not value <= most), None)
    if wrong is not None:
        reason, values = _why_adapters_differ(wrong, ours, theirs)
        return made("initial_adapter", most, rows, wrong, reason, **values)
    module = next((module for module, (a, b) in scalings.items() if not relative_number(a, b) <= most), None)
    if module is not None:
        first, second = scalings[module]
        return made("initial_adapter", most, rows, module, "scaling", here=f"{first:g}", there=f"{second:g}")
    return made("initial_adapter", most, rows, largest(rows)[0])


def _why_adapters_differ(name: str, ours: Mapping[str, np.ndarray],
                         theirs: Mapping[str, np.ndarray]) -> tuple[str, dict[str, str]]:
    if name not in ours or name not in theirs:
        return ("only_there" if name not in ours else "only_here"), {}
    module, _, part = name.rpartition(".")
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}.get(part)
    a, b = ours[name], theirs[name]
    if a.ndim == 2 and a.size == b.size and a.any():
        if np.array_equal(b.reshape(-1), a.T.reshape(-1)):
            return "transposed", {}
        if b.ndim == 2 and np.array_equal(b.T.reshape(-1), a.reshape(-1)):
            return "transposed", {}
        if np.array_equal(b.reshape(-1), a.reshape(-1)):
            return "shapes", {"here": str(a.shape), "there": str(b.shape)}
    if other is not None:
        # B starts as zeros, so where A is zero there and B is not, they changed places.
        partner = f"{module}.{other}"
        if partner in ours and partner in theirs and _same_values(a, theirs[partner]) and _same_values(
                ours[partner], b):
            return "exchanged", {}
    if a.shape != b.shape:
        return "shapes", {"here": str(a.shape), "there": str(b.shape)}
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return "not_finite", {}
    return "adapter_values", {}


def _same_values(first: np.ndarray, second: np.ndarray) -> bool:
    return first.size == second.size and any(
        np.array_equal(first.reshape(-1), turned.reshape(-1)) for turned in (second, second.T))
