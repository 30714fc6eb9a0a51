"""Small files in WebNLG's and DART's layouts: made-up triples about towns, and texts that say them."""

from __future__ import annotations

from typing import Any

CATEGORIES = ("City", "Airport", "Politician")  # the last is not in WebNLG's training set


def webnlg(*entries: dict[str, Any]) -> dict[str, Any]:
    """A file of these entries, numbered from 1."""
    return {"entries": [{str(number): entry} for number, entry in enumerate(entries, 1)]}


def entry(triples: list[tuple[str, str, str]], *texts: str, category: str = "City", **changes: Any) -> dict[str, Any]:
    """An entry of WebNLG; a text that starts with "toFix:" is marked so."""
    named = [dict(zip(("subject", "property", "object"), triple)) for triple in triples]
    return {"category": category, "dbpedialinks": [], "links": [], "modifiedtripleset": named,
            "originaltriplesets": {"originaltripleset": [named]}, "shape": "NA", "shape_type": "NA",
            "size": str(len(named)), "xml_id": "Id1",
            "lexicalisations": [{"comment": "toFix" if text.startswith("toFix:") else "good", "lang": "",
                                 "lex": text, "xml_id": f"Id{number}"} for number, text in enumerate(texts, 1)],
            **changes}


def dart(triples: list[tuple[str, str, str]], *texts: str, **changes: Any) -> dict[str, Any]:
    """An entry of DART."""
    return {"tripleset": [list(triple) for triple in triples], "subtree_was_extended": False,
            "annotations": [{"source": "e2e", "text": text} for text in texts], **changes}


def towns(count: int) -> list[tuple[str, list[tuple[str, str, str]], list[str]]]:
    """(category, triples, texts) about this many towns."""
    return [(CATEGORIES[number % len(CATEGORIES)],
             [(f"Town_{number}", "HOUSES", str(7 * number + 3)), (f"Town_{number}", "river", f"R{number}")],
             [f"Town {number} has {7 * number + 3} houses and the river R{number}.",
              f"The R{number} flows through Town {number}, which has {7 * number + 3} houses."])
            for number in range(count)]


def webnlg_towns(count: int) -> dict[str, Any]:
    return webnlg(*(entry(triples, *texts, category=category) for category, triples, texts in towns(count)))


def dart_towns(count: int) -> list[dict[str, Any]]:
    return [dart(triples, *texts) for _, triples, texts in towns(count)]
