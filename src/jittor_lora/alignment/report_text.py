"""The report as Markdown, ready for a README, and as a few lines for the terminal."""

from __future__ import annotations

import math
from typing import Any, Iterator

from jittor_lora.alignment import words
from jittor_lora.alignment.cost import cost_rows, same_settings
from jittor_lora.alignment.result import Alignment
from jittor_lora.alignment.tolerances import TOLERANCES
from jittor_lora.alignment.words import say

_SHOWN_CHECKS = ("losses", "final_adapter", "held_out")


def markdown(alignment: Alignment, language: str, images: tuple[str, ...] = ("loss", "difference")) -> str:
    """A section with verdict, checks, curves, time and memory, scores.

    Args:
        images: names of the charts beside it.
    """
    lines = [f"### {_plain(say(language, 'title', first=alignment.names[0], second=alignment.names[1]))}", ""]
    if alignment.of_log:
        lines += [_plain(say(language, "with note", second=alignment.names[1])), "",
                  words.overlay(alignment, language), ""]
    else:
        lines += [f"**{_plain(words.verdict(alignment, language))}**", ""]
    failure = alignment.first_failure
    if failure is not None:
        lines += [_plain(f"{say(language, 'first failure', check=words.title(failure, language))}: "
                         f"{words.sentence(alignment, failure, language)}"), ""]
    if alignment.dropout:
        lines += [say(language, "dropout note"), ""]
    if alignment.checks:
        lines += [*_table([say(language, f"column {name}") for name in ("check", "result", "found", "tolerance")],
                          _check_rows(alignment, language)), "", say(language, "checks note"), ""]
    for name in images:
        lines += [f"![{say(language, f'chart {name}')}]({name}.png)", ""]
    if not alignment.of_log:
        rows = [[label[language], first, second] for label, first, second in cost_rows(alignment)]
        if all(alignment.scores):
            rows += [[say(language, key), *(f"{getattr(one, name):.2f}" for one in alignment.scores)]
                     for key, name in (("exact match", "exact_match"), ("f1", "f1"))]
        lines += [*_table(["", *alignment.names], rows), "",
                  say(language, "cost note", same=same_settings(alignment, language)), ""]
        if alignment.answered:
            lines += [say(language, "answers note", different=f"{len(alignment.answers):,}",
                          count=f"{alignment.answered:,}"), ""]
    return "\n".join(lines)


def _check_rows(alignment: Alignment, language: str) -> Iterator[list[str]]:
    for check in alignment.checks:
        yield [words.title(check, language), say(language, f"state {words.state(check)}"),
               words.found(check, language), words.tolerance(check)]


def _table(heads: list[str], rows) -> Iterator[str]:
    for cells in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """A text in one line that Markdown takes as it is: names and answers are no markup."""
    text = " ".join(text.split())
    return text if text == "---" else "".join(f"\\{c}" if c in "\\|<>*[]`" else c for c in text)


def lines_for_terminal(alignment: Alignment) -> list[str]:
    """The verdict, the first difference, the figures that a reader asks for first."""
    lines = [words.verdict(alignment, "en")]
    if alignment.of_log:
        return [*lines, words.overlay(alignment, "en")]
    failure = alignment.first_failure
    if failure is not None:
        lines += [f"first: {words.title(failure, 'en')}: {words.found(failure, 'en')}, "
                  f"tolerance {words.tolerance(failure)}",
                  f"  {words.sentence(alignment, failure, 'en')}"]
        later = [words.title(check, "en") for check in alignment.checks if check.passed is False][1:]
        if later:
            lines.append(f"  then: {', '.join(later)}")
    for check in alignment.checks:
        if failure is None and check.key in _SHOWN_CHECKS and check.passed:
            lines.append(f"{words.title(check, 'en')}: {words.found(check, 'en')} at most, in "
                         f"{words.place(check, 'en')}; tolerance {words.tolerance(check)}")
    if alignment.answered:
        lines.append(say("en", "answers note", different=f"{len(alignment.answers):,}",
                         count=f"{alignment.answered:,}"))
    if not alignment.of_log:
        lines += [f"{name}: {facts.training_seconds:,.1f} s of training, {facts.peak_bytes / 2**20:,.0f} MiB"
                  for name, facts in zip(alignment.names, alignment.facts)]
    if alignment.dropout:
        lines.append(say("en", "dropout note"))
    return lines


def summary(alignment: Alignment) -> dict[str, Any]:
    """The report as JSON; numbers that are not finite are null, and `passed` is false."""
    failure = alignment.first_failure
    return {
        "agrees": alignment.agrees if alignment.checks else None,
        "verdict": words.verdict(alignment, "en"),
        "first_failure": failure and {"check": failure.key, "where": failure.where, "reason": failure.reason,
                                      "sentence": words.sentence(alignment, failure, "en")},
        "names": list(alignment.names),
        "dropout": alignment.dropout,
        "checks": [{"check": check.key, "passed": check.passed, "found": _number(check.found),
                    "tolerance": check.tolerance, "unit": TOLERANCES[check.key].unit, "where": check.where,
                    "reason": words.sentence(alignment, check, "en"),
                    "rows": [[name, _number(value)] for name, value in check.rows]} for check in alignment.checks],
        "sides": [facts and {"framework": facts.framework, "versions": dict(facts.versions),
                             "machine": dict(facts.machine), "settings": dict(facts.settings),
                             "training_seconds": facts.training_seconds, "peak_bytes": facts.peak_bytes}
                  for facts in alignment.facts],
        "scores": [scores and {"exact_match": scores.exact_match, "f1": scores.f1, "count": scores.count}
                   for scores in alignment.scores],
        "answered": alignment.answered,
        "different_answers": {name: list(texts) for name, texts in alignment.answers.items()},
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
