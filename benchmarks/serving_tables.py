"""The tables of `serving.py`.

    python benchmarks/serving_tables.py benchmarks/results/serving.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jittor_lora.benchmark.report import MISSING, failure, number, table

TITLES = {"texts": "Texts", "contexts": "Five questions of a context"}


def tables(report: dict[str, Any]) -> str:
    """Sentences about the run, and a table per part."""
    lines = [setting(report), ""]
    for part, title in TITLES.items():
        results = [result for result in report["results"] if result["part"] == part]
        if results:
            lines += [f"### {title}", "", comparison(results), ""]
    return "\n".join(lines)


def setting(report: dict[str, Any]) -> str:
    system, settings = report["system"], report["settings"]
    peers = "; ".join(f"{name}: {system[name]}" for name in ("llama.cpp", "llama-cpp-python", "mlx") if name in system)
    runs = [run for result in report["results"] for record in result["contenders"] for run in record["runs"]]
    available = system["cores"] * sum(run["seconds"] for run in runs) or 1
    shares = {name: 100 * sum(run[f"{name}_cpu_seconds"] for run in runs) / available for name in ("client", "others")}
    return (f"Base: {report['base']}. {system['cpu']}, {system['cores']} cores; jittor-lora {system['jittor_lora']}"
            f"{'; ' + peers if peers else ''}. Threads: {settings['threads']}; rounds: {settings['rounds']}; at most "
            f"{settings['new']} new tokens per text. The client used {shares['client']:.0f} % of the processor time, "
            f"other processes {shares['others']:.0f} %.")


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """A row per workload and contender: medians over the rounds, the best round in brackets."""
    rows = []
    for result in results:
        ours, *_ = result["contenders"]
        for record in result["contenders"]:
            name = f"**{record['name']}**" if record["ours"] else record["name"]
            cells = [result["way"], f"{result['clients']}", name]
            if not record["runs"]:
                rows.append([*cells, *[MISSING] * 6, failure(record)])
                continue
            ratio = MISSING
            if ours["runs"] and record is not ours:
                ratio = f"{rate(ours, 'units', statistics.median) / rate(record, 'units', statistics.median):.2f}"
            rows.append([
                *cells, *(milliseconds(record, share) for share in (0.5, 0.99)),
                f"{number(rate(record, 'tokens', statistics.median))} ({number(rate(record, 'tokens', max))})",
                f"{number(rate(record, 'units', statistics.median))} ({number(rate(record, 'units', max))})",
                ratio, MISSING if record["ours"] else agreement(ours, record), record["choice"]])
    unit = "contexts" if results[0]["part"] == "contexts" else "requests"
    return table(["", "clients", "server", "first token, median", "p99", "tokens/s", f"{unit}/s", "first is faster by",
                  "same texts", "best option"], rows)


def rate(record: dict[str, Any], name: str, of: Callable[[list[float]], float]) -> float:
    """Units or tokens per second, over the rounds."""
    return of([run[name] / run["seconds"] for run in record["runs"]])


def milliseconds(record: dict[str, Any], share: float) -> str:
    """A quantile of the time to the first token, the median and the smallest over the rounds."""
    found = [quantile(run["first"], share) for run in record["runs"]]
    return f"{number(1000 * statistics.median(found))} ({number(1000 * min(found))}) ms"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The share of texts of the first round that are the same, but for whitespace around them."""
    if not ours["runs"] or not theirs["runs"]:
        return MISSING
    pairs = list(zip(ours["runs"][0]["texts"], theirs["runs"][0]["texts"]))
    return f"{100 * sum(a.strip() == b.strip() for a, b in pairs) / len(pairs):.0f} %"


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
