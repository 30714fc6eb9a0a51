"""DART 1.1.1 (Nan et al. 2021): triples of tables, WebNLG and E2E, and texts that express them."""

from __future__ import annotations

import os
from typing import Any

from jittor_lora.data.jsonl import PromptData
from jittor_lora.data.records import Ids, Source, records
from jittor_lora.data.text_file import MISSING
from jittor_lora.data.triples import PARTS, TripleSets

_EXAMPLE = 'Each entry is like {"tripleset": [["…", "…", "…"]], "annotations": [{"source": "…", "text": "…"}]}.'


def is_dart(row: dict[str, Any]) -> bool:
    return "tripleset" in row


def parse_dart(source: Source, path: str | os.PathLike, purpose: str = "training") -> PromptData:
    """Prompts of linearised triples (see `TripleSets`), with the texts of all annotators as completions.

    As by the LoRA paper, relations are in lower case. Ids are the numbers of the entries.

    Args:
        purpose: "training" and "evaluation" leave out entries without a text, "prompts" does not.

    Raises:
        UserError: entries are malformed, with their numbers, or there is no text.
    """
    sets, ids = TripleSets(path, "DART", purpose), Ids()
    for place, row in records(source, sets.offenders):
        if not isinstance(row, dict):
            sets.offenders.add(place, 'an object with "tripleset" and "annotations"', row)
            continue
        name = ids.take(row, place, sets.offenders)
        triples = sets.triples(row.get("tripleset", MISSING), f"{place}, tripleset", _parts)
        triples = [(subject, relation.lower(), what) for subject, relation, what in triples]
        sets.add(name, triples, sets.texts(row.get("annotations", MISSING), f"{place}, annotations", "text"))
    return sets.data(_EXAMPLE)


def _parts(triple: Any) -> list[Any] | None:
    return triple if isinstance(triple, list) and len(triple) == len(PARTS) else None
