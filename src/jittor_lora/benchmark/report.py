"""Formats the measurements as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jittor_lora.benchmark import ring_tables
from jittor_lora.benchmark.table import MISSING, failure, flat, median, number, table, values
from jittor_lora.errors import UserError
from jittor_lora.formats.hugging_face import read_json

TITLES = {
    "gemm": "Matrix product", "step": "Training step", "squad": "Training on SQuAD", "decode": "Greedy decoding",
    "evaluate": "Answering SQuAD", "scaling": "Training step by length and threads", "memory": "Memory over a long run",
    "additive": "What each part gives", "adapters": "What each kind of adapter costs",
    "roofline": "Share of the matrix-product peak", "ring": "Against the others in the same format",
    "text": "Decoding one text, by storage format", "texts": "Decoding several texts, by storage format",
    "prompt": "Reading a prompt, by storage format", "context": "Questions of a context, by storage format",
    "training": "Training step, by storage format", "logits": "Logits against float32",
    "bandwidth": "Share of the memory bandwidth",
}
AGREEMENT = {"fp32": 1e-4, "tf32": 3e-3, "bf16": 3e-2}  # largest relative difference of a loss or a gradient norm
EARLY_STEP = 50
PACKAGES = ("jittor_lora", "jittor", "onednn", "torch", "transformers", "peft", "llama-cpp-python", "mlx", "mlx-lm")


def tables(report: dict[str, Any]) -> dict[str, str]:
    """The table of every part that was measured, by its name in `TITLES`."""
    found = {}
    for part in TITLES:
        results = [result for result in report["results"] if result["part"] == part]
        if part == "roofline":
            found[part] = roofline(report)
        elif part in ring_tables.WHOLE:
            found[part] = ring_tables.WHOLE[part](report)
        elif part == "logits" and results:
            found[part] = ring_tables.logits(results)
        elif part in ring_tables.COMPARED and results:
            found[part] = ring_tables.comparison(results)
        elif part == "memory" and results:
            found[part] = memory(results)
        elif part == "additive" and results:
            found[part] = additive(results)
        elif part == "adapters" and results:
            found[part] = adapters(results)
        elif results:
            found[part] = comparison(results)
    return {part: table for part, table in found.items() if table}


def markdown(report: dict[str, Any]) -> str:
    """The whole report: machine, settings, tables."""
    lines = ["# Benchmark", "", setting(report), ""]
    for part, text in tables(report).items():
        lines += [f"## {TITLES[part]}", "", text, ""]
    return "\n".join(lines)


def setting(report: dict[str, Any]) -> str:
    """Sentences about the machine and the run."""
    system, settings = report["system"], report["settings"]
    versions = ", ".join(f"{name} {system[name]}" for name in PACKAGES if system.get(name))
    text = (f"Base: {report['base']}. {system['cpu']}, {system['cores']} cores, {system['memory_gib']} GiB, "
            f"{', '.join(system['instructions'])}; {versions}; Python {system['python']}. "
            f"Threads: {settings['threads']}; runs per tool: {settings['repeats']}, after "
            f"{settings['warmups']} for warm-up.")
    text += f" Other processes used {100 * disturbance(report):.0f} % of the processor time meanwhile."
    for name, choice in report["choices"].items():
        tried = ", ".join(f"{record['name']} {min(run['seconds'] for run in record['runs']):.3g} s"
                          for record in choice["tried"] if record["runs"])
        text += f" {name[0].upper()}{name[1:]}: the fastest of {tried}."
    return text


def disturbance(report: dict[str, Any]) -> float:
    """The share of the machine's processor time used by other processes during the counted runs."""
    runs = [run for result in report["results"] for record in result["contenders"] for run in record["runs"]]
    available = report["system"]["cores"] * sum(run["seconds"] for run in runs)
    return sum(run["others_cpu_seconds"] for run in runs) / available if runs else 0.0


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """A row per contender and workload: median and minimum wall time, median processor time, rate, ratio."""
    several_threads = len({result["threads"] for result in results}) > 1
    rows = []
    for result in results:
        ours, *_ = result["contenders"]
        for record in result["contenders"]:
            cells = [result["workload"], result["precision"]] + [f"{result['threads']}"] * several_threads
            cells.append(f"**{record['name']}**" if record["ours"] else record["name"])
            if not record["runs"]:
                rows.append([*cells, *[MISSING] * 6, failure(record)])
                continue
            seconds = median(record, "seconds")
            rows.append([*cells, number(seconds), number(min(values(record, "seconds"))),
                         number(median(record, "cpu_seconds")), number(result["units"] / seconds),
                         f"{seconds / median(ours, 'seconds'):.2f}" if ours["runs"] else MISSING,
                         f"{max(values(record, 'peak_mib')):,.0f}",
                         MISSING if record is ours else agreement(result["precision"], ours["check"], record["check"])])
    units = {result["unit"] for result in results}
    head = ["workload", "precision", *["threads"] * several_threads, "tool", "median s", "min s", "CPU s",
            f"{units.pop()}s per second", "time / first", "peak MiB", "same result"]
    return table(head, rows)


def agreement(precision: str, ours: Any, theirs: Any) -> str:
    """Compares two checks: the relative difference of numbers, or the share of equal tokens or answers."""
    if not ours or not theirs:
        return MISSING
    shown = []
    for name, mine in ours.items():
        other = theirs[name]
        if isinstance(mine, float):
            difference = abs(other - mine) / abs(mine)
            shown.append(f"{name} ±{difference:.0e}" + (" (DIFFERS)" if difference > AGREEMENT[precision] else ""))
        else:
            pairs = list(zip(flat(mine), flat(other)))
            shown.append(f"{100 * sum(a == b for a, b in pairs) / len(pairs):.0f} % of {name}")
    return ", ".join(shown)


def additive(results: Sequence[dict[str, Any]]) -> str:
    """A row per addition, with its speed-up over the row above and over the first."""
    rows = []
    for result in results:
        first = above = result["contenders"][0]
        for record in result["contenders"]:
            if not record["runs"]:
                rows.append([record["name"], *[MISSING] * 6, failure(record)])
                continue
            seconds = median(record, "seconds")
            gains = [f"{median(other, 'seconds') / seconds:.2f}" if other["runs"] else MISSING
                     for other in (above, first)]
            precision = record["options"].get("precision", result["precision"])
            rows.append([record["name"], number(seconds), number(median(record, "cpu_seconds")),
                         number(result["units"] / seconds), *gains, f"{max(values(record, 'peak_mib')):,.0f}",
                         MISSING if record is first else agreement(precision, first["check"], record["check"])])
            above = record
    return table(["with", "median s", "CPU s", f"{results[0]['unit']}s per second", "faster than above",
                  "than the first", "peak MiB", "same result"], rows)


def adapters(results: Sequence[dict[str, Any]]) -> str:
    """A row per kind of adapter: trained values, and time and memory relative to the first."""
    rows = []
    for result in results:
        first = result["contenders"][0]
        for record in result["contenders"]:
            if not record["runs"]:
                rows.append([record["name"], *[MISSING] * 5, failure(record)])
                continue
            seconds, peak = median(record, "seconds"), max(values(record, "peak_mib"))
            ratios = [f"{seconds / median(first, 'seconds'):.2f}", f"{peak / max(values(first, 'peak_mib')):.2f}"]
            rows.append([record["name"], f"{record['check']:,}", number(seconds), number(median(record, "cpu_seconds")),
                         ratios[0], f"{peak:,.0f}", ratios[1]])
    return table(["adapter", "trained values", "median s", "CPU s", "time / first", "peak MiB", "peak / first"],
                 rows)


def memory(results: Sequence[dict[str, Any]]) -> str:
    """Resident memory during a training run."""
    rows = []
    for result in results:
        for record in result["contenders"]:
            resident = record["check"]
            if not resident:
                rows.append([result["precision"], record["name"], *[MISSING] * 4])
                continue
            early = resident[min(EARLY_STEP, len(resident)) - 1]
            rows.append([result["precision"], record["name"], f"{len(resident)}", f"{early:,.0f}",
                         f"{resident[-1]:,.0f}", f"{max(values(record, 'peak_mib')):,.0f}"])
    return table(["precision", "tool", "steps", f"MiB after step {EARLY_STEP}", "MiB at the end", "peak MiB"], rows)


def roofline(report: dict[str, Any]) -> str:
    """The training step with all rows scored: operations per second relative to the best matrix product."""
    peaks: dict[str, float] = {}
    for result in report["results"]:
        if result["part"] == "gemm":
            rates = [result["units"] / min(values(record, "seconds")) for record in result["contenders"]
                     if record["runs"]]
            peaks[result["precision"]] = max([peaks.get(result["precision"], 0.0), *rates])
    rows = []
    for result in report["results"]:
        peak = peaks.get(result["precision"])
        if result["part"] == "step" and result["gflop"] and peak:
            for record in result["contenders"]:
                if record["runs"]:
                    rate = result["gflop"] / median(record, "seconds")
                    rows.append([result["precision"], record["name"], f"{result['gflop']:,.0f}", f"{rate:,.0f}",
                                 f"{peak:,.0f}", f"{100 * rate / peak:.0f} %"])
    return table(["precision", "tool", "GFLOP needed", "GFLOP/s", "peak GFLOP/s", "share"], rows) if rows else ""


def read(*paths: str) -> dict[str, Any]:
    """Merge the `bench.json` of several runs that measured different parts.

    Raises:
        UserError: a file cannot be read, the machines, versions or bases differ, or a part occurs twice.
    """
    reports = [read_json(Path(path)) for path in paths]
    whole = {**reports[0], "results": [], "choices": {}}
    parts: dict[str, str] = {}
    for path, report in zip(paths, reports):
        for name in ("base", "system"):
            if report[name] != whole[name]:
                raise UserError(f"{path}: {name}: expected {whole[name]}, as in {paths[0]}; found {report[name]}. "
                                "Measure all parts on one machine with one set of versions.")
        for part in {result["part"] for result in report["results"]}:
            if part in parts:
                raise UserError(f"{path}: {part}: expected once; it is in {parts[part]} too. Leave one of them out.")
            parts[part] = path
        whole["results"] += report["results"]
        whole["choices"].update(report["choices"])
    return whole
