"""Two systems side by side on the same questions, as a table for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from jittor_lora.errors import UserError
from jittor_lora.evaluation.bootstrap import paired_difference
from jittor_lora.evaluation.metrics import summarize
from jittor_lora.evaluation.scoring import SquadScore, same_rule


def comparison_table(base: SquadScore, adapter: SquadScore, names: tuple[str, str] = ("base", "adapter"),
                     seed: int = 0) -> str:
    """EM and F1 of both in percent with 95 % intervals, and their difference with its interval and p-value.

    Raises:
        UserError: the two were not scored on the same questions in the same order, or not by the same rule.
    """
    if [question.id for question in base.per_question] != [question.id for question in adapter.per_question]:
        raise UserError(f"{names[0]} and {names[1]} were scored on different questions ({base.count} and "
                        f"{adapter.count}). Evaluate both on the same data with the same limit.")
    same_rule({name: score.scoring for name, score in zip(names, (base, adapter))})
    before, after = summarize(base, seed), summarize(adapter, seed)
    rows = [("", names[0], "95 %", names[1], "95 %", "difference", "95 %", "p")]
    for label, field, values in (("exact match", "exact_match", "em"), ("F1", "f1", "f1")):
        difference = paired_difference(*([getattr(question, values) for question in score.per_question]
                                         for score in (base, adapter)), base.units, seed=seed)
        rows.append((label,
                     *_with_interval(getattr(before, field), getattr(before, f"{field}_interval")),
                     *_with_interval(getattr(after, field), getattr(after, f"{field}_interval")),
                     *_with_interval(100 * difference.mean, (100 * difference.low, 100 * difference.high), sign="+"),
                     f"{difference.p_value:.4f}"))
    notes = [f"{name}: {score.missing} of {score.count} questions without a prediction count as 0"
             for name, score in zip(names, (base, adapter)) if score.missing]
    return "\n".join([table(rows), f"{before.sample}, scores in percent; {before.claim}", *notes])


def table(rows: Sequence[Sequence[str]]) -> str:
    """`rows` in columns, the first aligned left and the others right, by their width on a terminal."""
    widths = [max(map(display_width, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        padding = [" " * (width - display_width(cell)) for cell, width in zip(row, widths)]
        lines.append("  ".join([row[0] + padding[0], *(space + cell for space, cell in zip(padding[1:], row[1:]))]))
    return "\n".join(line.rstrip() for line in lines)


def display_width(text: str) -> int:
    """Terminal columns that `text` takes: 2 for wide East Asian characters, 0 for combining marks."""
    return sum(0 if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me")
               else 2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _with_interval(value: float, interval: tuple[float, float], sign: str = "") -> tuple[str, str]:
    return f"{value:{sign}.2f}", f"[{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"
