"""Tables of what benchmarks/gpu.sh found.

    python benchmarks/gpu_report.py runs/gpu/results.jsonl --output benchmarks/results
    python benchmarks/gpu_report.py benchmarks/results/cuda-CARD-DATE.json --page docs/gpu.md --machine h100

Writes report.md and cuda-<card>-<date>.json, all lines in one file, to the output folder. With --page, the text between
`<!-- bench: NAME MACHINE -->` and `<!-- /bench -->` in a page is replaced by the table of that name (`TITLES`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_results import read
from report import filled

from jittor_lora.benchmark.report import agreement
from jittor_lora.benchmark.table import MISSING, failure, median, number, table, values
from jittor_lora.files.atomic import atomic_write, write_json

Lines = Sequence[dict[str, Any]]
VERSIONS = ("jittor_lora", "jittor", "torch", "transformers", "peft", "python")
MOST_KERNELS = 10


def tables(lines: Lines) -> dict[str, str]:
    """Name in `TITLES` → table; none for what was not measured."""
    found = {}
    for name, (part, make) in MAKERS.items():
        these = [line for line in lines if line["part"] == part]
        if these:
            found[name] = make(these)
    return {name: text for name, text in found.items() if text}


def setting(lines: Lines) -> str:
    """A sentence about the machine."""
    machine = lines[-1]
    system = machine["system"]
    cards = ", ".join(machine["cards"]) or "no GPU"
    versions = ", ".join(f"{name} {system[name]}" for name in VERSIONS if system.get(name))
    return (f"{cards}; CUDA {machine['nvcc'] or MISSING}, driver for CUDA {machine['driver']}; {system['cpu']}, "
            f"{system['cores']} cores, {', '.join(system['instructions'])}; {versions}.")


def checks(lines: Lines) -> str:
    """A row per group of operations and precision: the largest difference."""
    rows, groups = [], defaultdict(list)
    for line in lines:
        groups[line["group"], line["precision"], line["stock"]].append(line)
    for (group, precision, stock), these in groups.items():
        failed = [line["name"] for line in these if not line["ok"]]
        errors = [line["error"] for line in these if line.get("error") is not None]
        by = "definitions" if stock or not (these[0]["kernel"] or group == "networks") else "kernels"
        by += ", on a CPU" * (these[0]["device"] == "cpu")
        rows.append([group, by, precision, f"{len(these)}", f"{max(errors):.1e}" if errors else MISSING,
                     f"{these[0].get('bound', 0):.0e}" if "bound" in these[0] else MISSING,
                     f"**{', '.join(failed[:3])}{' …' if len(failed) > 3 else ''}**" if failed else "yes"])
    return table(["operations", "on", "precision", "arrays", "largest difference", "bound", "within"], rows)


def races(*jobs: str, on_cpu: bool = False) -> Callable[[Lines], str]:
    """A row per contender of these jobs."""

    def make(lines: Lines) -> str:
        rows = []
        for line in lines:
            if line["job"] not in jobs or (line["kind"] == "cpu") != on_cpu:
                continue
            ours = line["contenders"][0]
            for record in line["contenders"]:
                cells = [line["model"], line["workload"], line["precision"], *[f"{line['threads']}"] * on_cpu,
                         f"**{record['name']}**" if record["ours"] else record["name"]]
                if not record["runs"]:
                    rows.append([*cells, *[MISSING] * 5, failure(record)])
                    continue
                seconds = median(record, "seconds")
                rows.append([*cells, number(1e3 * seconds), number(1e3 * min(values(record, "seconds"))),
                             number(line["units"] / seconds),
                             f"{seconds / median(ours, 'seconds'):.2f}" if ours["runs"] else MISSING,
                             f"{record['device_mib']:,.0f}" if "device_mib" in record else MISSING,
                             MISSING if record is ours else
                             agreement(line["precision"], ours["check"], record["check"])])
        head = ["model", "work", "precision", *["threads"] * on_cpu, "tool", "median ms", "min ms",
                "units per second", "time / ours", "GPU MiB", "same result"]
        return table(head, rows) if rows else ""

    return make


def profiles(lines: Lines) -> str:
    rows = [[line["model"], line["precision"], line["rows"], "**jittor-lora**" if line["side"] == "ours" else "PEFT",
             f"{line['launches']:.0f}", f"{line['copies']:.0f}", number(line["busy_ms"]), number(line["step_ms"])]
            for line in lines]
    head = ["model", "precision", "rows scored", "tool", "launches", "copies", "ms in kernels", "ms a step"]
    return table(head, rows)


def longest(lines: Lines) -> str:
    """The kernels of our step that take longest."""
    rows = [[kernel["name"][:80].replace("|", "/"), f"{kernel['times']:.0f}", number(kernel["ms"])]
            for line in lines if line["side"] == "ours" for kernel in line["kernels"][:MOST_KERNELS]]
    return table(["kernel", "times a step", "ms a step"], rows) if rows else ""


def resumed(lines: Lines) -> str:
    return table(["resumed", "same bits", "adapter differs by", "losses differ by", "as promised"],
                 [[line["name"], "yes" if line["same_bits"] else "no", f"{line['adapter']:.0e}",
                   f"{line['losses']:.0e}", "yes" if line["ok"] else "**no**"] for line in lines])


def kernels(lines: Lines) -> str:
    """A row per pass of each operation: of cuda_kernels.py."""
    rows = []
    for line in lines:
        took = line["seconds"]
        rows.append([line["name"], line["precision"], number(1e6 * took), number(line["bytes"] / took / 1e9),
                     number(line["flops"] / took / 1e12), f"{100 * line['share']:.0f} %",
                     number(line["stock_seconds"] / took) if "stock_seconds" in line else MISSING])
    return table(["operation", "precision", "µs", "GB/s", "TFLOP/s", "share of the bound", "stock / ours"], rows)


def best(lines: Lines) -> str:
    """What the card does at best, in a sentence."""
    return (f"At best {number(lines[-1]['bytes'] / 1e9)} GB/s copied, and " +
            ", ".join(f"{number(flops / 1e12)} TFLOP/s in {name}" for name, flops in lines[-1]["flops"].items()) + ".")


def parts(lines: Lines) -> str:
    return table(["part", "seconds", "status"], [[line["name"], f"{line['seconds']}",
                                                  {0: "done", -1: "no time", 124: "cut off"}.get(
                                                      line["status"], f"failed ({line['status']})")] for line in lines])


# Name of a table, as in a page's marks → part of the lines, and what makes the table of them.
MAKERS: dict[str, tuple[str, Callable[[Lines], str]]] = {
    "machine": ("machine", setting),
    "checks": ("checks", checks),
    "training": ("speed", races("step", "squad")),
    "decoding": ("speed", races("decode", "evaluate")),
    "profile": ("profile", profiles),
    "longest": ("profile", longest),
    "best": ("kernels: best", best),
    "kernels": ("kernels", kernels),
    "resume": ("resume", resumed),
    "cpu": ("speed", races("step", on_cpu=True)),
    "parts": ("part", parts),
}
TITLES = {"machine": "Machine", "checks": "Agreement with a CPU", "training": "Training", "decoding": "Decoding",
          "profile": "A training step", "longest": "Its longest kernels", "best": "The card",
          "kernels": "Kernels", "resume": "Resumed runs", "cpu": "On the processor", "parts": "Parts"}


def lines_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))["lines"]
    return list(read(path))


def file_name(lines: Lines) -> str:
    machine = next((line for line in lines if line["part"] == "machine"), {"card": "", "time": lines[0].get("time", 0)})
    card = re.sub(r"[^a-z0-9]+", "-", machine["card"].lower()).strip("-") or "none"
    day = datetime.datetime.fromtimestamp(machine["time"], datetime.timezone.utc).date()
    return f"cuda-{card}-{day}.json"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--output", type=Path, help="folder for report.md and the file of all lines")
    parser.add_argument("--page", type=Path, help="fill the marks of a page")
    parser.add_argument("--machine", help="fill the marks of this machine")
    given = parser.parse_args(arguments)
    lines = lines_of(given.results)
    found = tables(lines)
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        write_json(given.output / file_name(lines), {"lines": lines})
        with atomic_write(given.output / "report.md") as stream:
            stream.write("".join(f"## {TITLES[name]}\n\n{text}\n\n" for name, text in found.items()))
    if given.page:
        text, absent = filled(given.page.read_text(encoding="utf-8"), found, given.machine)
        with atomic_write(given.page) as stream:
            stream.write(text)
        if absent:
            print(f"Not measured: {', '.join(absent)}", file=sys.stderr)
    print("\n\n".join(f"{TITLES[name]}\n{text}" for name, text in found.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
