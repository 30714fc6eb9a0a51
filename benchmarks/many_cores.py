"""How far training steps can spread over cores: the tasks of each parallel loop, and what is serial.

    python benchmarks/many_cores.py [--base smollm2-135m]

Steps are timed with one thread and with two. Then the kernels are compiled so that each parallel loop reports its tasks
and its time with one thread. In the model of a step on T threads, a loop of n equal tasks takes ceil(n / T) / n of its
time, and everything else as long as before. That is what dividing the work allows; memory bandwidth, caches and the
clock rates of a busy processor are ignored.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

STEPS = {"8 × 256 tokens, all rows scored": ("step", {"shape": (8, 256), "rows": "all"}),
         "8 × 256 tokens, answers scored": ("step", {"shape": (8, 256), "rows": "answer"}),
         "8 questions of SQuAD": ("squad", {"questions": 32})}
MODELLED = (2, 4, 8, 16, 32, 64, 128)
REPEATS = 4


def measure(base: str, kind: str, spec: dict, trace: bool) -> None:
    """Runs in a separate process: prints the seconds of each step as JSON and, with `trace`, its loops to stderr."""
    if trace:
        from jittor_lora.ops.cpu import library
        library.FLAGS += ("-DJL_TRACE_TASKS",)
    from jittor_lora.benchmark.ours import Contender
    contender, seconds = Contender(base, int(os.environ["OMP_NUM_THREADS"]), "fp32"), []
    if kind == "step":
        run = contender.step(spec).run
    else:
        training, batches, *_ = contender._squad(spec)
        streams = next(iter(batches))

        def run() -> None:
            training.step(streams)

    for _ in range(REPEATS + 1):
        print("STEP", file=sys.stderr, flush=True)
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds[1:]))


def in_process(base: str, name: str, threads: int, trace: bool = False) -> tuple[float, str]:
    """The median seconds of a step, and the trace of the last one."""
    kind, spec = STEPS[name]
    done = subprocess.run([sys.executable, __file__, "--measure", json.dumps([base, kind, spec, trace])],
                          env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return statistics.median(json.loads(done.stdout.splitlines()[-1])), done.stderr.rsplit("STEP\n", 1)[1]


def loops(trace: str) -> dict[str, list[tuple[int, float]]]:
    """(tasks, seconds) of each run of each loop, by position in the source."""
    found = defaultdict(list)
    for where, tasks, seconds in re.findall(r"^TASKS (\S+) (\d+) (\S+)$", trace, re.MULTILINE):
        found[where].append((int(tasks), float(seconds)))
    return found


def report(name: str, one: float, two: float, traced: float, found: dict) -> str:
    inside = sum(seconds for runs in found.values() for _, seconds in runs)
    serial = traced - inside
    lines = [f"### {name}", "",
             f"Step: {one:.2f} s with one thread, {two:.2f} s with two ({one / two:.2f} times as fast). Outside "
             f"parallel loops: {serial:.3f} s, {100 * serial / traced:.1f} % of the traced step.", "",
             "| loop | runs | tasks, minimum and median | share of the step |", "| --- | --- | --- | --- |"]
    for where, runs in sorted(found.items(), key=lambda item: -sum(s for _, s in item[1])):
        share = sum(seconds for _, seconds in runs) / traced
        if share >= 0.002:
            tasks = sorted(count for count, _ in runs)
            lines.append(f"| {where} | {len(runs)} | {tasks[0]}, {tasks[len(tasks) // 2]} | {100 * share:.1f} % |")

    def modelled(threads: int, serial: float = serial) -> float:
        return serial + sum(seconds * math.ceil(count / threads) / max(count, 1)
                            for runs in found.values() for count, seconds in runs)

    lines += ["", f"| threads | {' | '.join(map(str, MODELLED))} |", f"| --- |{' --- |' * len(MODELLED)}",
              "| speed-up of the whole step | " + " | ".join(f"{traced / modelled(t):.1f}" for t in MODELLED) + " |",
              "| of the parallel loops alone | "
              + " | ".join(f"{inside / modelled(t, 0):.1f}" for t in MODELLED) + " |", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the tasks of the kernels' parallel loops.")
    parser.add_argument("--base", help="a base; by default a GPT-2 with 124M parameters and random weights")
    parser.add_argument("--steps", nargs="*", default=list(STEPS), help="which of: " + "; ".join(STEPS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(*json.loads(args.measure))
    from jittor_lora.benchmark.base import provide
    with tempfile.TemporaryDirectory() as folder:
        base, sentence, _ = provide(args.base, Path(folder))
        print(f"{sentence}.\n")
        for name in args.steps:
            one, two = (in_process(str(base), name, threads)[0] for threads in (1, 2))
            traced, trace = in_process(str(base), name, 1, trace=True)
            print(report(name, one, two, traced, loops(trace)), flush=True)


if __name__ == "__main__":
    main()
