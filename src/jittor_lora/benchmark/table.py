"""Markdown tables of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def failure(record: Mapping[str, Any]) -> str:
    """Why a contender has no measurement."""
    return record.get("error", "not measured")[:80].replace("|", "/").replace("\n", " ")


def values(record: Mapping[str, Any], name: str) -> list[float]:
    return [run[name] for run in record["runs"]]


def median(record: Mapping[str, Any], name: str) -> float:
    return statistics.median(values(record, name))


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def flat(value: Any) -> list[Any]:
    return [item for entry in value for item in flat(entry)] if isinstance(value, list) else [value]
