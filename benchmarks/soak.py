"""A long training run through the command line, watched from outside: does its use of the machine grow?

    python benchmarks/soak.py --output benchmarks/results --picture docs/images/soak.png

A small GPT-2 with random weights is trained on the SQuAD sample, with validation, answers and checkpoints on the way.
Once per second its resident memory, open files, threads, steps and CPU time are recorded in soak.json, with a verdict:
memory, files and threads must not grow in the second half of the run, nor CPU time per token from start to end. The
exit code is 1 if one does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from jittor_lora.benchmark.base import GPT2, provide
from jittor_lora.evaluation.charts import DPI, INK, SMALL, TEXT, TITLE, matplotlib_defaults
from jittor_lora.evaluation.fonts import find_font
from jittor_lora.files.atomic import atomic_write, write_json
from jittor_lora.system.machine import available_cores, cpu_model

BASE = {**GPT2, "n_embd": 192, "n_layer": 4, "n_head": 6}
MOST_MEMORY = 0.02  # growth over the second half, relative to its mean; buffers reach their size in the first
MOST_TIME = 0.10  # growth of CPU time per token
BEGINNING, END = (0.1, 0.3), (0.8, 1.0)  # parts of the run whose speed is compared
FAINT, GRID, BLUE, VERMILION, GREEN = "#777777", "#E3E3E3", "#0072B2", "#D55E00", "#009E73"


def watched(command: list[str], folder: Path, every: float) -> list[dict]:
    """Run a training command with run folder `folder`, and sample its process every `every` seconds."""
    samples, started = [], time.monotonic()
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    while process.poll() is None:
        found = look(process.pid, folder)
        if found:
            samples.append({"seconds": round(time.monotonic() - started, 2), **found})
        time.sleep(every)
    if process.returncode:
        said = folder.with_suffix(".log").read_text(encoding="utf-8")
        sys.exit(f"{' '.join(command)}: exited with code {process.returncode}:\n{said}")
    return samples


def look(process: int, folder: Path) -> dict | None:
    """What a process uses now, and the number of steps done; None if it has just ended."""
    place, losses = Path("/proc", str(process)), folder / "train_loss.txt"
    try:
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        times = (place / "stat").read_text().rpartition(")")[2].split()
        return {"step": losses.read_bytes().count(b"\n") if losses.exists() else 0,
                "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
                "files": len(os.listdir(place / "fd")), "threads": int(status["Threads"]),
                "cpu_seconds": (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")}
    except (OSError, KeyError):
        return None


def verdict(samples: list[dict], rows: list[dict]) -> dict:
    """What grows: memory by least squares over the second half, files and threads from the first half to the second,
    without the time before the first step.

    Args:
        samples: of `watched`.
        rows: the steps of metrics.jsonl.
    """
    total = rows[-1]["step"]
    steps, memory, files, threads = (np.array([s[name] for s in samples], float) for name in
                                     ("step", "rss_mib", "files", "threads"))
    later = steps >= total / 2
    earlier = (steps > 0) & ~later if (steps[steps > 0] < total / 2).any() else ~later  # not while it starts
    slope = np.polyfit(steps[later], memory[later], 1)[0]
    growth = slope * total / 2 / memory[later].mean()
    read, spent = so_far(samples, rows)

    def speeds(part: tuple[float, float]) -> tuple[float, float]:
        """Tokens per second, and CPU milliseconds per token."""
        a, b = (round(share * total) for share in part)
        tokens = read[b] - read[a]
        return tokens / sum(row["seconds"] for row in rows[a:b]), 1000 * (spent[b] - spent[a]) / tokens

    first, last = speeds(BEGINNING), speeds(END)
    counts = {name: {"usual_in_the_first_half": float(np.median(values[earlier])),  # not while a file is written
                     "usual_in_the_second": float(np.median(values[later])),
                     "flat": bool(np.median(values[later]) <= np.median(values[earlier]))}
              for name, values in (("files", files), ("threads", threads))}
    return {
        "steps": total,
        "memory": {"mib_at_half": memory[later][0], "mib_at_end": memory[-1], "mib_at_most": memory.max(),
                   "mib_per_1000_steps": 1000 * slope, "growth": growth, "flat": bool(growth < MOST_MEMORY)},
        **counts,
        "speed": {"tokens_per_second": [first[0], last[0]], "processor_ms_per_token": [first[1], last[1]],
                  "flat": bool(last[1] < first[1] * (1 + MOST_TIME))},
    }


def so_far(samples: list[dict], rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens read and CPU seconds spent after each step, from 0 on."""
    known = np.searchsorted([sample["step"] for sample in samples], np.arange(len(rows) + 1))  # first sample after it
    times = np.array([sample["cpu_seconds"] for sample in samples])
    return np.cumsum([0, *(row["tokens"] for row in rows)]), times[np.minimum(known, len(times) - 1)]


def lines(found: dict) -> list[str]:
    """The verdict in words."""
    memory, speed = found["memory"], found["speed"]
    said = {
        "memory": f"{memory['mib_at_half']:.0f} MiB after half of the steps, {memory['mib_at_end']:.0f} at the end, "
                  f"{memory['mib_at_most']:.0f} at most; {memory['mib_per_1000_steps']:+.1f} MiB per 1,000 steps",
        **{name: f"usually {found[name]['usual_in_the_first_half']:.0f} in the first half, "
                 f"{found[name]['usual_in_the_second']:.0f} in the second" for name in ("files", "threads")},
        "speed": "{:.0f} tokens per second at the start, {:.0f} at the end; ".format(*speed["tokens_per_second"])
                 + "CPU time {:.3f} and {:.3f} ms per token".format(*speed["processor_ms_per_token"]),
    }
    return [f"{name}: {'flat' if found[name]['flat'] else 'GROWS'}: {text}" for name, text in said.items()]


@matplotlib_defaults()
def picture(samples: list[dict], rows: list[dict], title: str) -> Figure:
    """Memory, files and threads, and CPU time per token, by step."""
    figure = Figure(figsize=(8.0, 6.5), dpi=DPI, layout="constrained")
    memory, counts, speed = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1.2, 2))
    at = [sample["step"] for sample in samples]
    memory.plot(at, [sample["rss_mib"] for sample in samples], color=BLUE, linewidth=1.8)
    memory.set_ylabel("Memory (MiB)")
    counts.plot(at, [sample["threads"] for sample in samples], color=VERMILION, linewidth=1.8, label="threads")
    counts.plot(at, [sample["files"] for sample in samples], color=GREEN, linewidth=1.8, label="open files")
    counts.set_ylabel("Count")
    counts.legend(loc="lower right", ncols=2, frameon=False)
    read, spent = so_far(samples, rows)
    ends = np.arange(0, len(rows) + 1, max(1, len(rows) // 40))
    speed.plot(ends[1:], 1000 * np.diff(spent[ends]) / np.diff(read[ends]), color=BLUE, linewidth=1.8)
    speed.set_ylabel("CPU time (ms per token)")
    speed.xaxis.set_major_formatter("{x:,.0f}")
    speed.set_xlabel(f"Optimizer step (CPU time: means of {ends[1]} steps, with validation and checkpoints)")
    for axes in (memory, counts, speed):
        axes.set_ylim(bottom=0, top=1.15 * max(line.get_ydata().max() for line in axes.lines))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    speed.set_xlim(0, rows[-1]["step"])
    memory.set_title(title, loc="left")
    figure.align_ylabels()
    figure.draw_without_rendering()  # creates all tick labels
    set_fonts(figure.axes)
    return figure


def set_fonts(all_axes: list[Axes]) -> None:
    face = find_font(["abcdefghijklmnopqrstuvwxyz0123456789.,()"], "en", None)
    for axes in all_axes:
        for text in axes.findobj(Text):
            text.set_fontproperties(face)
            title, label = text in (axes.title, axes._left_title), text is axes.yaxis.label
            text.set(size=TITLE if title else TEXT if label else SMALL, color=INK)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for soak.json")
    parser.add_argument("--picture", type=Path, help="a .png file")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=1.0, help="between samples")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, what, _ = provide(None, Path(folder, "base"), BASE)
        run, often = Path(folder, "run"), max(1, min(100, args.steps // 20))
        options = {"base": base, "data": "sample-train", "dev": "sample-dev", "max-dev": 40, "batch-size": 8,
                   "max-steps": args.steps, "eval-every": often, "eval-questions": 8, "save-every": often,
                   "output": run}
        command = [sys.executable, "-m", "jittor_lora", "train",
                   *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
        samples = watched(command, run, args.seconds)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train_loss" in row]
    found = verdict(samples, rows)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in options.items() if name not in ("base", "output")}
    write_json(args.output / "soak.json", {
        "base": what, "settings": settings, "cpu": cpu_model(), "cores": available_cores(),
        "load_over_5_minutes": os.getloadavg()[1], "verdict": found, "samples": samples, "steps": rows})
    if args.picture:
        with atomic_write(args.picture, "wb") as stream:
            picture(samples, rows, f"{args.steps:,} training steps").savefig(stream, format="png")
    print("\n".join(lines(found)))
    return 0 if all(part["flat"] for part in found.values() if isinstance(part, dict)) else 1


if __name__ == "__main__":
    sys.exit(main())
