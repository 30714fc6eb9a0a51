"""The sentences of the report, in English and Chinese.

`here` and `there` are replaced by what was found on each side, {first_name} and {second_name} by the sides' names,
{where} by a check's place.
"""

from __future__ import annotations

from jittor_lora.alignment.result import Alignment, Check
from jittor_lora.alignment.tolerances import COUNT, NATS, TOLERANCES
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
    if not check.where:
        return ""
    numbered = {"learning_rate": "step", "losses": "step", "gradient_norms": "step", "loss": "step",
                "held_out": "text"}.get(check.key)
    return say(language, f"at {numbered}", number=check.where) if numbered else check.where


def amount(value: float | None, unit: str) -> str:
    """A difference or a tolerance as a number, without its unit."""
    if value is None:
        return MISSING
    if unit == COUNT:
        return "∞" if value == float("inf") else f"{value:,.0f}"
    return "∞" if value == float("inf") else "0" if value == 0 else f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}"


def found(check: Check) -> str:
    return amount(check.found, TOLERANCES[check.key].unit)


def tolerance(check: Check) -> str:
    return amount(check.tolerance, TOLERANCES[check.key].unit)


def unit(check: Check, language: str) -> str:
    kind = TOLERANCES[check.key].unit
    return say(language, {COUNT: "unit count", NATS: "unit nats"}.get(kind, "unit relative"))


def state(check: Check) -> str:
    """The key of its state: "passed", "failed", "informs" or "skipped"."""
    if check.passed is not None:
        return "passed" if check.passed else "failed"
    return "skipped" if check.found is None else "informs"


def verdict(alignment: Alignment, language: str) -> str:
    made = [check for check in alignment.checks if check.passed is not None]
    failed = [check for check in made if not check.passed]
    first, second = alignment.names
    if not failed:
        return say(language, "agree", first=first, second=second, count=len(made))
    return say(language, "disagree", first=first, second=second, failed=len(failed), count=len(made))
