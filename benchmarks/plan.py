"""How well `train --plan` predicts: plans runs, then runs them.

    python benchmarks/plan.py --base smollm2-135m --output runs/plans

Each takes about a minute on two cores. A ratio is what was planned, time or peak memory, over what the run took. With
--processor-time, for machines on which others work, planned and taken times are processor times of one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ON_THE_PROCESSOR = """
import sys, time
time.perf_counter = time.process_time
from jittor_lora.cli.main import main
sys.exit(main())
"""
RUNS = {
    "batches of 8": [],
    "batches of 2, at most 160 tokens": ["--batch-size", "2", "--max-tokens", "160"],
    "batches of 32 in streams of 512": ["--batch-size", "32", "--max-tokens-per-stream", "512"],
    "validation with answers": ["--dev", "sample-dev", "--max-dev", "48", "--eval-every", "8", "--eval-questions",
                                "24"],
    "fp32, activation checkpointing": ["--precision", "fp32", "--activation-checkpointing"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", default="sample-train")
    parser.add_argument("--examples", default="160", help="that each run trains on")
    parser.add_argument("--output", type=Path, default=Path("runs/plans"), help="folder for the runs, removed first")
    parser.add_argument("--processor-time", action="store_true")
    args, more = parser.parse_known_args()
    shutil.rmtree(args.output, ignore_errors=True)
    print(f"{'run':<34} {'planned':>9} {'ran':>9} {'ratio':>6}   {'memory planned':>14} {'peak':>9} {'ratio':>6}")
    program = ["-c", ON_THE_PROCESSOR] if args.processor_time else ["-m", "jittor_lora"]
    for number, (name, flags) in enumerate(RUNS.items()):
        command = [sys.executable, *program, "train", "--base", args.base, "--data", args.data, "--max-train",
                   args.examples, *flags, *more, *(["--threads", "1"] if args.processor_time else [])]
        planned = json.loads(subprocess.run([*command, "--plan", "--json"], stdout=subprocess.PIPE, check=True).stdout)
        folder = args.output / str(number)
        subprocess.run([*command, "--output", folder], stderr=subprocess.DEVNULL, check=True)
        ran = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        memory = planned["memory"] / 2**20
        print(f"{name:<34} {planned['seconds']:>7.1f} s {ran['seconds']:>7.1f} s "
              f"{planned['seconds'] / ran['seconds']:>6.2f}   {memory:>10,.0f} MiB {ran['peak_memory_mib']:>5,} MiB "
              f"{memory / ran['peak_memory_mib']:>6.2f}", flush=True)
        print(name, planned["seconds_by"], file=sys.stderr)


if __name__ == "__main__":
    main()
