"""The JSON files of the WebNLG challenge 2017 (Gardent et al. 2017): DBpedia's triples and texts that express them."""

from __future__ import annotations

import os
import re
from typing import Any

from jittor_lora.data.jsonl import PromptData
from jittor_lora.data.records import Ids, first_value
from jittor_lora.data.text_file import MISSING, is_text, parse_json
from jittor_lora.data.triples import TripleSets
from jittor_lora.errors import UserError

# The categories of the training set; the test set has five more.
SEEN = ("Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam", "University",
        "WrittenWork")
_FIELDS = ("subject", "property", "object")
_EXAMPLE = ('Each entry is like {"1": {"category": "Airport", "modifiedtripleset": [{"subject": "…", "property": "…", '
            '"object": "…"}], "lexicalisations": [{"comment": "good", "lex": "…"}]}}.')


def is_webnlg(text: str) -> bool:
    """Whether a text is an object with "entries"."""
    start = text.lstrip()
    if re.match(r'\{\s*"entries"\s*:', start):
        return True
    if not start.startswith("{") or '"entries"' not in text:
        return False
    found = first_value(start)
    return found is not None and not start[found[1]:].strip() and isinstance(found[0].get("entries"), list)


def parse_webnlg(text: str, path: str | os.PathLike, purpose: str = "training") -> PromptData:
    """Prompts of linearised triples (see `TripleSets`), with the texts marked "good" as completions.

    As by the LoRA paper, other texts are left out ("toFix"), and prompts belong to the group "seen" or "unseen", by
    whether the training set has their category. Ids are the keys of the entries.

    Args:
        purpose: "training" and "evaluation" leave out entries without a good text, "prompts" does not.

    Raises:
        UserError: entries are malformed, with their numbers, or there is no text.
    """
    try:
        entries = parse_json(text)["entries"]
    except ValueError as error:
        raise UserError(f"{path}: expected WebNLG's JSON ({error}).") from error
    sets, ids = TripleSets(path, "WebNLG", purpose), Ids()
    if not isinstance(entries, list):
        sets.offenders.add("entries", "a list", entries)
        entries = []
    for number, entry in enumerate(entries, 1):
        place = f"entry {number:,}"
        if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry.values())), dict):
            sets.offenders.add(place, "an object with one key, the entry's number", entry)
            continue
        key, content = next(iter(entry.items()))
        name = ids.take({"id": key}, place, sets.offenders)
        category = content.get("category", MISSING)
        if not is_text(category):
            sets.offenders.add(f"{place}, category", "a text", category)
        triples = sets.triples(content.get("modifiedtripleset", MISSING), f"{place}, modifiedtripleset", _parts)
        texts = sets.texts(content.get("lexicalisations", MISSING), f"{place}, lexicalisations", "lex", _reason)
        sets.add(name, triples, texts, "seen" if category in SEEN else "unseen")
    return sets.data(_EXAMPLE)


def _parts(triple: Any) -> list[Any] | None:
    return [triple[field] for field in _FIELDS] if isinstance(triple, dict) and triple.keys() >= {*_FIELDS} else None


def _reason(text: dict[str, Any]) -> str:
    return "" if text.get("comment") == "good" else "not marked good"
