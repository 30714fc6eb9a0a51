"""SQuAD's questions as flat rows: as the library datasets writes them, and with one answer as a text, as in tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from jittor_lora.data.records import Source, records
from jittor_lora.data.squad import SquadData, is_flat, parse_flat
from jittor_lora.data.text_file import Offenders, is_text

__all__ = ["is_flat", "parse_rows"]


def parse_rows(source: Source, path: str | os.PathLike, purpose: str = "training") -> SquadData:
    """Rows with `context`, `question` and `answers`, or `answer` with or without `answer_start`; without it, the first
    place of the answer in the context.

    Raises:
        UserError: see `parse_flat`.
    """
    return parse_flat(_WithAnswers(source), path, purpose)


class _WithAnswers:
    """Rows whose `answer` is in a list `answers`."""

    def __init__(self, source: Source):
        self._source = source

    def records(self, offenders: Offenders) -> Iterator[tuple[str, Any]]:
        for place, row in records(self._source, offenders):
            yield place, _listed(row) if isinstance(row, dict) else row


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    texts = row.get("answers", row.get("answer"))
    if is_text(texts) and "answers" not in row:
        texts = [texts]
    if not isinstance(texts, list) or not all(map(is_text, texts)):
        return row
    context, given = row.get("context"), row.get("answer_start")
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 12:
        given = int(given)
    starts = [max(context.find(text), 0) if is_text(context) else 0 for text in texts] if given is None else [given]
    if len(starts) != len(texts):
        return row
    return {**row, "answers": [{"text": text, "answer_start": start} for text, start in zip(texts, starts)]}
