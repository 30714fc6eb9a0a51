"""The lines of E2E NLG: a meaning representation, two bars, a reference text (Novikova et al. 2017)."""

from __future__ import annotations

import os
import re

from jittor_lora.data.jsonl import Completion, Prompt, PromptData
from jittor_lora.data.text_file import Offenders
from jittor_lora.errors import UserError

BARS = "||"


def is_e2e(text: str) -> bool:
    """Whether the first line is in E2E's format, and not JSON."""
    line = text.lstrip("\ufeff").lstrip().partition("\n")[0]
    return not line.startswith(("{", "[")) and BARS in line


def parse_e2e(text: str, path: str | os.PathLike, purpose: str = "training") -> PromptData:
    """Prompts "<meaning representation> ||" with all their references as completions, each after a space.

    Equal meaning representations are merged into one prompt; ids are line numbers. Blank lines are skipped.

    Args:
        purpose: "training" and "evaluation" need a reference in each line, "prompts" does not.

    Raises:
        UserError: lines are malformed, with their numbers, or there are none.
    """
    offenders, merged = Offenders(path), {}
    for number, line in enumerate(re.split(r"\r?\n", text.lstrip("\ufeff")), 1):
        if not line.strip():
            continue
        meaning, bars, reference = (part.strip() for part in line.partition(BARS))
        if not meaning or not bars or not (reference or purpose == "prompts"):
            offenders.add(f"line {number}", "a meaning representation, || and a reference", line)
        elif not offenders.count:
            merged.setdefault(meaning, []).append(Completion(str(number), f" {reference}"))
    offenders.check("Each line is: name : … | area : …||A text that says so .")
    if not merged:
        raise UserError(f"{path}: no lines in it.")
    return PromptData(str(path), tuple(Prompt(rows[0].id, f"{meaning} {BARS}", tuple(rows))
                                       for meaning, rows in merged.items()), "E2E NLG")
