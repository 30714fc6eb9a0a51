"""How training scales over MPI ranks: measured for a few, modelled for many.

    python benchmarks/scaling.py --output benchmarks/results --page docs/data-parallel.md

Measured: training steps with one rank and with several, one thread each, in turns; and all-reduces of several sizes,
through shared memory and through TCP. From these, and from how evenly batches divide, the model predicts more ranks.
The tables go into the page, between `<!-- scaling -->` and `<!-- /scaling -->`, and every single time into
scaling.json. Needs Open MPI and as many free cores as ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jittor_lora.data.examples import training_groups
from jittor_lora.data.parts import runs
from jittor_lora.data.sources import load_data
from jittor_lora.data.stream import batches, cut, rows
from jittor_lora.data.template import Template
from jittor_lora.files.atomic import atomic_write, write_json

SIZES = [2**k for k in range(0, 25, 2)]  # numbers in float32: 4 bytes to 64 MiB
TRANSPORTS = {"shared memory": (),
              "TCP on this machine": ("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo")}
NETWORKS = {"1 Gbit/s, 50 µs": (50e-6, 0.117e9), "10 Gbit/s, 30 µs": (30e-6, 1.17e9)}  # latency, bytes per second
MODELLED = (2, 4, 8, 16, 32, 64)
MODELLED_BATCHES = (64, 256, 1024)
TOKENS_PER_STREAM = 1024
BEGIN, END = "<!-- scaling -->\n", "<!-- /scaling -->"


def mpirun(ranks: int, *command: str, options: tuple[str, ...] = ()) -> list[str]:
    return ["mpirun", *options, "-np", str(ranks), sys.executable, *command]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def measure_sums(repeats: int) -> None:
    """Runs in each rank; prints the seconds of each all-reduce as JSON, one list per size."""
    from jittor_lora.system.ranks import join
    ranks, found = join(), {}
    for size in SIZES:
        array, times = np.ones(size, np.float32), []
        for _ in range(repeats + 2):
            ranks.barrier()
            started = time.perf_counter()
            ranks.all_reduce(array)
            times.append(time.perf_counter() - started)
        found[size] = times[2:]
    if ranks.first:
        print(json.dumps(found))


def sums(ranks: int, repeats: int) -> dict[str, dict[int, list[float]]]:
    found = {}
    for name, options in TRANSPORTS.items():
        text = subprocess.run(mpirun(ranks, __file__, "--measure-sums", str(repeats), options=options),
                              env=environment(), check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = {int(size): times for size, times in json.loads(text).items()}
    return found


def train(ranks: int, args: argparse.Namespace) -> dict:
    """Tokens and seconds of the steps after the first two, their losses, and the number of trained parameters."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "jittor_lora", "train", "--base", args.base, "--data", "sample-train", "--max-steps",
                   str(args.steps + 2), "--batch-size", str(args.batch_size), "--precision", args.precision,
                   "--threads", "1", "--output", f"{folder}/run", "--seed", "7"]
        subprocess.run(mpirun(ranks, *command) if ranks > 1 else [sys.executable, *command], env=environment(),
                       check=True, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()][2:]
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {"tokens": sum(line["tokens"] for line in lines), "seconds": sum(line["seconds"] for line in lines),
            "losses": [line["train_loss"] for line in lines], "parameters": summary["trainable_parameters"]}


def steps(args: argparse.Namespace) -> dict[int, list[dict]]:
    """Runs with one rank and with several, in turns, in reverse order in every other round."""
    found: dict[int, list[dict]] = {1: [], args.ranks: []}
    for number in range(args.rounds):
        for ranks in (1, args.ranks) if number % 2 == 0 else (args.ranks, 1):
            found[ranks].append(train(ranks, args))
            last = found[ranks][-1]
            print(f"round {number + 1}, {ranks} rank(s): {last['tokens'] / last['seconds']:.0f} tokens per second",
                  file=sys.stderr, flush=True)
    return found


def groups_of_sample(base: str) -> list:
    from jittor_lora.formats.bases import load_base, resolve_base
    return training_groups(load_data("sample-train", "train"), load_base(resolve_base(base))[1], Template(),
                           TOKENS_PER_STREAM)[0]


def divided(groups: list, batch_size: int, ranks: int) -> float:
    """The efficiency that uneven parts alone would leave: mean part over largest part."""
    whole = longest = 0
    for batch in (batch for epoch in range(3) for batch in batches(groups, batch_size, 0, epoch)):
        sizes = [rows(group.prefix, group.branches) for stream in cut(batch, TOKENS_PER_STREAM) for group in stream]
        whole += sum(sizes)
        longest += max(sum(sizes[start:end]) for start, end in runs(sizes, ranks))
    return whole / ranks / longest


def fitted(times: dict[int, list[float]], ranks: int) -> tuple[float, float]:
    """Latency in seconds and bytes per second of a message, from the minimum times of the smallest and the largest sum,
    if a sum goes around a ring: 2 (N - 1) messages, together 2 (N - 1) / N of all bytes."""
    small, large = min(times), max(times)
    latency = min(times[small]) / (2 * (ranks - 1))
    return latency, 2 * (ranks - 1) / ranks * 4 * large / (min(times[large]) - min(times[small]))


def ring(ranks: int, size: int, latency: float, bandwidth: float) -> float:
    return 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def page(report: dict, groups: list) -> str:
    """All tables in Markdown."""
    ranks, speeds = report["ranks"], {}
    lines = [report["setting"], "", "| ranks | tokens per second, median | best | speed-up, by medians | by bests | "
             "difference of losses |", "| --- | --- | --- | --- | --- | --- |"]
    for count, found in report["steps"].items():
        speeds[count] = [run["tokens"] / run["seconds"] for run in found]
        losses = [run["losses"] for run in found]
        apart = max(abs(a / b - 1) for a, b in zip(losses[0], report["steps"][1][0]["losses"]))
        lines.append(f"| {count} | {statistics.median(speeds[count]):.0f} | {max(speeds[count]):.0f} | "
                     f"{statistics.median(speeds[count]) / statistics.median(speeds[1]):.2f} | "
                     f"{max(speeds[count]) / max(speeds[1]):.2f} | {apart:.0e} |")
    share = divided(groups, report["batch_size"], ranks)
    lines += ["", f"With {ranks} ranks, uneven parts of these batches alone limit efficiency to {share:.2f}.", "",
              f"All-reduces over {ranks} ranks, minimum and median of {report['repeats']}, in milliseconds:", "",
              f"| numbers | bytes | {' | '.join(report['sums'])} |", f"| --- | --- |{' --- |' * len(report['sums'])}"]
    for size in SIZES:
        cells = [f"{1e3 * min(times[size]):.3f}, {1e3 * statistics.median(times[size]):.3f}"
                 for times in report["sums"].values()]
        lines.append(f"| {size:,} | {4 * size:,} | {' | '.join(cells)} |")
    networks = {**{name: fitted(times, ranks) for name, times in report["sums"].items()}, **NETWORKS}
    speed, size = max(speeds[1]), 4 * report["steps"][1][0]["parameters"]
    lines += ["", "Latency and bandwidth in the model, the measured ones from the minimum times: " + "; ".join(
        f"{name}: {1e6 * latency:.1f} µs, {bandwidth / 1e9:.2f} GB/s" for name, (latency, bandwidth) in
        networks.items()) + ".", "",
        f"Modelled speed-up over one rank, for {size / 4:,.0f} parameters ({size / 2**20:.1f} MiB) at "
        f"{speed:.0f} tokens per second per rank:", "",
        f"| batch | ranks | uneven parts alone | {' | '.join(networks)} |",
        f"| --- | --- | --- |{' --- |' * len(networks)}"]
    for batch_size in MODELLED_BATCHES:
        mean = np.mean([sum(rows(g.prefix, g.branches) for g in batch) for batch in batches(groups, batch_size, 0, 0)])
        alone = mean / speed
        for count in MODELLED:
            part = alone / (count * divided(groups, batch_size, count))
            cells = [f"{alone / (part + ring(count, size, *network)):.1f}" for network in networks.values()]
            lines.append(f"| {batch_size} | {count} | {alone / part:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how training scales over MPI ranks.")
    parser.add_argument("--output", type=Path, required="--measure-sums" not in sys.argv)
    parser.add_argument("--page", type=Path, help="page whose tables to replace")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="measured steps per run, after two unmeasured ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=50, help="all-reduces per size")
    parser.add_argument("--measure-sums", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_sums:
        return measure_sums(args.measure_sums)
    if not shutil.which("mpirun"):
        sys.exit("mpirun: not found. Debian, Ubuntu: apt-get install openmpi-bin libopenmpi-dev")
    from jittor_lora.system.runtime import system_info
    machine = system_info()
    report = {"ranks": args.ranks, "batch_size": args.batch_size, "repeats": args.repeats, "system": machine,
              "steps": steps(args), "sums": sums(args.ranks, args.repeats)}
    load = os.getloadavg()[1]
    report["setting"] = (
        f"Base: {args.base}, {args.precision}, batches of {args.batch_size} questions of sample-train, one thread per "
        f"rank, {args.rounds} rounds of {args.steps} steps. {machine['cpu']}, {machine['cores']} cores; load average "
        f"over 5 minutes at the end {load:.1f}.")
    text = page(report, groups_of_sample(args.base))
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "scaling.json", report)
    print(text)
    if args.page:
        before, rest = args.page.read_text(encoding="utf-8").split(BEGIN)
        with atomic_write(args.page) as stream:
            stream.write(f"{before}{BEGIN}\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
