"""The sentences of the report, in English and Chinese.

`here` and `there` are replaced by what was found on each side, {first_name} and {second_name} by the sides' names,
{where} by a check's place.
"""

from __future__ import annotations

import math

from jittor_lora.alignment.result import Alignment, Check
from jittor_lora.alignment.tolerances import COUNT, NATS, RELATIVE, TOLERANCES
from jittor_lora.alignment.words_en import WORDS as ENGLISH
from jittor_lora.alignment.words_zh import WORDS as CHINESE

WORDS = {"en": ENGLISH, "zh": CHINESE}
LANGUAGES = tuple(WORDS)
MISSING = "–"


def say(language: str, key: str, **values: object) -> str:
    return WORDS[language][key].format(**values)


def title(check: Check, language: str) -> str:
    return say(language, f"check {check.key}")


def sentence(alignment: Alignment, check: Check, language: str) -> str:
    """Why a check failed or was not made; empty for one that passed and has nothing to say."""
    if not check.reason:
        return ""
    first, second = alignment.names
    return say(language, f"why {check.reason}", where=check.where, first_name=first, second_name=second,
               **check.values)


def place(check: Check, language: str) -> str:
    """Where the largest, or the first, difference is."""
    if not check.where or not check.found:
        return ""
    numbered = {"learning_rate": "step", "losses": "step", "gradient_norms": "step", "loss": "step",
                "held_out": "text"}.get(check.key)
    return say(language, f"at {numbered}", number=check.where) if numbered else check.where


def amount(value: float | None, unit: str = RELATIVE) -> str:
    """A difference or a tolerance as a number of two digits, without its unit."""
    if value is None:
        return MISSING
    if math.isinf(value):
        return "∞"
    if unit == COUNT or value == 0:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 1e-3 <= value < 1e6 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def signed(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{'−' if value < 0 else '+'}{amount(abs(value))}" if value else "0"


def found(check: Check, language: str) -> str:
    """The largest difference, in nats if it is not relative."""
    kind = TOLERANCES[check.key].unit
    number = amount(check.found, kind)
    return f"{number} {say(language, 'unit nats')}" if kind == NATS and check.found is not None else number


def tolerance(check: Check) -> str:
    return amount(check.tolerance, TOLERANCES[check.key].unit)


def state(check: Check) -> str:
    """The key of its state: "passed", "failed", "informs" or "skipped"."""
    if check.passed is not None:
        return "passed" if check.passed else "failed"
    return "skipped" if check.found is None else "informs"


def overlay(alignment: Alignment, language: str) -> str:
    """What the losses of a log say beside those of the run."""
    losses = [{one.step: one.loss for one in steps if math.isfinite(one.loss)} for steps in alignment.steps]
    apart = {step: abs(loss - losses[1][step]) for step, loss in losses[0].items() if step in losses[1]}
    if not apart:
        return say(language, "with none")
    step = max(apart, key=apart.__getitem__)
    return say(language, "with common", count=f"{len(apart):,}", mean=amount(sum(apart.values()) / len(apart), NATS),
               most=amount(apart[step], NATS), step=step)


def verdict(alignment: Alignment, language: str) -> str:
    if alignment.of_log:
        return say(language, "with title", first=alignment.names[0], second=alignment.names[1])
    made = [check for check in alignment.checks if check.passed is not None]
    failed = [check for check in made if not check.passed]
    first, second = alignment.names
    if not failed:
        return say(language, "agree", first=first, second=second, count=len(made))
    return say(language, "disagree", first=first, second=second, failed=len(failed), count=len(made))
