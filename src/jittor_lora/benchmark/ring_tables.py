"""Tables of the parts that compare storage formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jittor_lora.benchmark.table import MISSING, failure, flat, median, number, table, values

COMPARED = ("text", "texts", "prompt", "context", "training")


def ring(report: Mapping[str, Any]) -> str:
    """A row per work and peer, a column per format: how many times as long it takes as ours in the same format, by
    medians and, in brackets, minima. Empty if there is nothing to compare."""
    results = [result for result in report["results"] if result["part"] in COMPARED]
    formats = list(dict.fromkeys(record["format"] for result in results for record in result["contenders"]))
    rows = []
    for result in results:
        for name in dict.fromkeys(record["name"] for record in result["contenders"] if not record["ours"]):
            cells = {}
            for record in result["contenders"]:
                ours = _ours(result, record["format"])
                if record["name"] == name and record["runs"] and ours is not None:
                    cells[record["format"]] = "{} ({})".format(*_ratios(record, ours))
            rows.append([result["workload"], name, *(cells.get(kind, MISSING) for kind in formats)])
    return table(["work", "tool: time / ours", *formats], rows) if rows else ""


def comparison(results: Sequence[Mapping[str, Any]]) -> str:
    """A row per work, format and tool: times, their ratios to ours in the same format, and the speed relative to
    transformers or PEFT in float32, in the same turns."""
    rows, against = [], [_reference(result) for result in results]
    for result, reference in zip(results, against):
        for record in result["contenders"]:
            cells = [result["workload"], record["format"], _tool(record)]
            if not record["runs"]:
                rows.append([*cells, *[MISSING] * 6, *[MISSING] * any(against), failure(record)])
                continue
            seconds, ours = median(record, "seconds"), _ours(result, record["format"])
            gain = [f"{median(reference, 'seconds') / seconds:.2f}" if reference else MISSING] if any(against) else []
            rows.append([*cells, number(seconds), number(median(record, "cpu_seconds")),
                         number(result["units"] / seconds), *_ratios(record, ours), *gain,
                         f"{max(values(record, 'peak_mib')):,.0f}", _same(record, ours)])
    names = {reference["name"] for reference in against if reference}
    return table(["work", "format", "tool", "median s", "CPU s", f"{results[0]['unit']}s per second", "time / ours",
                  "minimum / ours", *(f"times as fast as {name}" for name in sorted(names)), "peak MiB",
                  "same result"], rows)


def logits(results: Sequence[Mapping[str, Any]]) -> str:
    """How far each tool's logits are from those of the same file in float32."""
    rows = []
    for result in results:
        for record in result["contenders"]:
            found = record["check"]
            if found:
                rows.append([record["format"], _tool(record),
                             _size(found["max"]), _size(found["mean"]), f"{100 * found['same']:.0f} %"])
            elif "error" in record:
                rows.append([record["format"], record["name"], *[MISSING] * 2, failure(record)])
    return table(["format", "tool", "largest difference of a logit", "mean", "same likeliest token"], rows)


def bandwidth(report: Mapping[str, Any]) -> str:
    """What decoding one text reads, against what this machine can read; empty if either was not measured."""
    speeds = [result["units"] / min(values(record, "seconds")) for result in report["results"]
              if result["part"] == "bandwidth" for record in result["contenders"] if record["runs"]]
    works = [result for result in report["results"] if result["part"] == "text"]
    rows = []
    for result in works if speeds else []:
        for record in result["contenders"]:
            size = result["read_per_token"].get(record["format"])
            if record["runs"] and size:
                seconds = median(record, "seconds") / result["units"]
                rate = size / 1e9 / seconds
                rows.append([record["format"], _tool(record),
                             number(size / 1e6), number(1000 * seconds), number(rate), number(max(speeds)),
                             f"{100 * rate / max(speeds):.0f} %"])
    return table(["format", "tool", "MB of weights per token", "ms per token", "GB/s", "memory, GB/s", "share"],
                 rows) if rows else ""


WHOLE = {"ring": ring, "bandwidth": bandwidth}  # tables of several parts


def _reference(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """transformers or PEFT in float32."""
    return next((record for record in result["contenders"]
                 if record["module"] == "peers" and record["format"] == "f32" and record["runs"]), None)


def _ours(result: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((record for record in result["contenders"] if record["ours"] and record["format"] == name
                 and record["runs"]), None)


def _ratios(record: Mapping[str, Any], ours: Mapping[str, Any] | None) -> list[str]:
    if ours is None:
        return [MISSING] * 2
    return [f"{median(record, 'seconds') / median(ours, 'seconds'):.2f}",
            f"{min(values(record, 'seconds')) / min(values(ours, 'seconds')):.2f}"]


def _same(record: Mapping[str, Any], ours: Mapping[str, Any] | None) -> str:
    """The share of equal tokens, or the relative difference of numbers; these are other weights where a tool
    quantises by itself."""
    if ours is None or record is ours or not record["check"] or not ours["check"]:
        return MISSING
    shown = []
    for name, mine in ours["check"].items():
        theirs = record["check"][name]
        if isinstance(mine, float):
            shown.append(f"{name} ±{abs(theirs - mine) / abs(mine):.0e}")
        else:
            pairs = list(zip(flat(mine), flat(theirs)))
            shown.append(f"{100 * sum(a == b for a, b in pairs) / len(pairs):.0f} % of {name}")
    return ", ".join(shown)


def _tool(record: Mapping[str, Any]) -> str:
    return f"**{record['name']}**" if record["ours"] else record["name"]


def _size(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
