"""The checks of the whole training: what each step reports, the final adapter, what it computes and answers."""

from __future__ import annotations

import math
from typing import Mapping, Optional, Sequence

import numpy as np

from jittor_lora.alignment.distance import arrays_apart, largest, norm, origin, relative, relative_number
from jittor_lora.alignment.record import Record, StepRecord
from jittor_lora.alignment.result import Check, made, not_compared
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.spectrum import difference

_JUMP = 30  # times everything before
_EARLY = 10  # steps


def check_learning_rate(here: Record, there: Record, most: float) -> Check:
    """Relative to the largest of the run."""
    pairs = [(a.learning_rate, b.learning_rate) for a, b in zip(here.steps, there.steps)]
    scale = max((abs(rate) for pair in pairs for rate in pair if math.isfinite(rate)), default=0.0)
    rows = tuple((str(step), _over(abs(a - b), scale)) for step, (a, b) in enumerate(pairs, 1))
    where = next((name for name, value in rows if not value <= most), None)
    if where is None:
        return made("learning_rate", most, rows)
    a, b = pairs[int(where) - 1]
    values = {"here": f"{a:.6g}", "there": f"{b:.6g}"}
    rates = np.array(pairs) if pairs else np.zeros((0, 2))
    for shift, reason in ((1, "rate_early"), (-1, "rate_late")):
        ours, theirs = (rates[1:, 0], rates[:-1, 1]) if shift == 1 else (rates[:-1, 0], rates[1:, 1])
        if len(ours) > 1 and np.ptp(ours) and np.abs(ours - theirs).max() <= most * scale:
            return made("learning_rate", most, rows, where, reason, **values)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = rates[:, 1] / rates[:, 0]
    factors = factors[np.isfinite(factors)]
    if len(factors) and np.ptp(factors) <= 1e-4 * abs(factors[0]):
        return made("learning_rate", most, rows, where, "rate_factor", factor=f"{factors[0]:.4g}", **values)
    return made("learning_rate", most, rows, where, "schedule", **values)


def check_losses(here: Record, there: Record, most: float, dropout: bool) -> Check:
    """In nats per label."""
    if dropout:
        return not_compared("losses", most, "dropout")
    return _check_series("losses", most, [(a, b, abs(a.loss - b.loss)) for a, b in zip(here.steps, there.steps)])


def check_gradient_norms(here: Record, there: Record, most: float, dropout: bool) -> Check:
    """Before clipping."""
    if dropout:
        return not_compared("gradient_norms", most, "dropout")
    rows = [(a, b, relative_number(a.grad_norm, b.grad_norm)) for a, b in zip(here.steps, there.steps)]
    check = _check_series("gradient_norms", most, rows)
    if check.passed is False:
        for first, second, reason in (("here", "there", "clipped_there"), ("there", "here", "clipped_here")):
            norms = {"here": [a.grad_norm for a, _, _ in rows], "there": [b.grad_norm for _, b, _ in rows]}
            cap = max(norms[second])
            capped = [(a, b) for a, b in zip(norms[first], norms[second]) if b > (1 - 1e-3) * cap]
            if len(capped) > 2 and all(a > b * 1.001 for a, b in capped):
                return made("gradient_norms", most, check.rows, check.where, reason, cap=f"{cap:.4g}")
    return check


def _check_series(key: str, most: float, pairs: Sequence[tuple[StepRecord, StepRecord, float]]) -> Check:
    rows = tuple((str(a.step), value if math.isfinite(value) else math.inf) for a, _, value in pairs)
    values = [value for _, value in rows]
    at = origin(values, most)
    if at is None:
        return made(key, most, rows, largest(rows)[0], "", **_growth(values))
    exceeds = next(name for name, value in rows if not value <= most)
    if not math.isfinite(max(values)):
        at = next(place for place, value in enumerate(values) if not math.isfinite(value))
        a, b, _ = pairs[at]
        side = "not_finite_here" if not math.isfinite(a.loss + a.grad_norm) else "not_finite_there"
        return made(key, most, rows, rows[at][0], side)
    if values[at] > _JUMP * max([most / 1000, *values[:at]]):
        reason = "first_step" if at == 1 else "second_update" if at < _EARLY else "jump"
        return made(key, most, rows, rows[at][0], reason, exceeds=exceeds)
    return made(key, most, rows, exceeds, "drift", **_growth(values))


def _growth(values: Sequence[float]) -> dict[str, str]:
    """The largest difference in the first and the last tenth of the steps."""
    tenth = max(1, len(values) // 10)
    if len(values) < 2 or not np.isfinite(values).all():
        return {}
    early, late = (f"{max(part):.1e}".replace("e-0", "e-") for part in (values[:tenth], values[-tenth:]))
    return {"early": early, "late": late, "count": str(tenth)}


def check_final_adapter(here: Record, there: Record, most: float, dropout: bool) -> Check:
    """By module: the norm of the difference of the updates s B A; of other trained arrays, their own."""
    if dropout:
        return not_compared("final_adapter", most, "dropout")
    ours, theirs = here.adapter, there.adapter
    rows = [(module, _updates_apart(here, there, module)) for module in _modules(ours, theirs)]
    others = [name for name in dict.fromkeys((*ours, *theirs)) if not name.endswith((".lora_A", ".lora_B"))]
    rows += arrays_apart(ours, theirs, others)
    if not rows:
        return not_compared("final_adapter", most, "no_adapter")
    where, found = largest(rows)
    return made("final_adapter", most, rows, where, "final" if not found <= most else "")


def _modules(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in (*ours, *theirs)
                              if name.endswith((".lora_A", ".lora_B"))))


def _updates_apart(here: Record, there: Record, module: str) -> float:
    """‖s B A − s' B' A'‖ over the larger norm; infinite if the shapes differ or a number is not finite."""
    sides = []
    for side in (here, there):
        a, b = (side.adapter.get(f"{module}.{part}") for part in ("lora_A", "lora_B"))
        if a is None or b is None or not math.isfinite(norm(a)) or not math.isfinite(norm(b)):
            return math.inf
        sides.append(Factors(a, b, side.scaling[module]))
    first, second = sides
    if first.a.shape != second.a.shape or first.b.shape != second.b.shape or first.a.shape[0] != first.b.shape[1]:
        return math.inf
    if first.scaling == second.scaling and all(map(np.array_equal, first[:2], second[:2])):
        return 0.0
    # Over the norm of the first, and of the second; NaN where that norm is zero.
    found = [difference(*pair).relative for pair in ((first, second), (second, first))]
    return min((value for value in found if not math.isnan(value)), default=0.0)


def check_held_out(here: Record, there: Record, most: float, dropout: bool) -> Check:
    """Logits on held-out texts, each row less its mean: softmax knows nothing else."""
    if dropout:
        return not_compared("held_out", most, "dropout")
    pairs = list(zip(here.held_out, there.held_out))
    if not pairs:
        return not_compared("held_out", most, "no_texts")
    rows = tuple((str(number), relative(_centred(a), _centred(b)) if a.shape == b.shape else math.inf)
                 for number, (a, b) in enumerate(pairs, 1))
    where, found = largest(rows)
    if found <= most:
        return made("held_out", most, rows, where)
    a, b = pairs[int(where) - 1]
    if a.shape != b.shape:
        return made("held_out", most, rows, where, "shapes", here=str(a.shape), there=str(b.shape))
    return made("held_out", most, rows, where, "logits")


def _centred(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        return logits - logits.mean(axis=-1, keepdims=True)


def check_answers(here: Record, there: Record, most: Optional[float], dropout: bool) -> Check:
    """Only informs: where two tokens are nearly as likely, rounding decides."""
    if dropout:
        return not_compared("answers", most, "dropout")
    if not here.answers:
        return not_compared("answers", most, "no_questions")
    different = [name for name, text in here.answers.items() if there.answers.get(name, text) != text]
    return made("answers", most, (("answers", float(len(different))),), different[0] if different else "")


def _over(value: float, scale: float) -> float:
    return value / scale if scale else value
