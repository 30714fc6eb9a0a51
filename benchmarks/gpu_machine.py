"""The machine on which benchmarks/gpu.sh runs, as a line of its results.

    python benchmarks/gpu_machine.py results.jsonl --folder FOLDER

The exit status is 1 if Jittor could not use its GPU, with --device cpu always 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from gpu_results import Results

from jittor_lora.benchmark.suite import system
from jittor_lora.system import cuda

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where the run keeps its files")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    found = cuda.find(os.environ)
    Results(given.results).add(
        "machine", system=system(), cards=[str(card) for card in found.cards],
        card=found.cards[0].name if found.cards else "", driver=".".join(map(str, found.driver.cuda)),
        nvcc=found.version, problem=found.problem, free_gb=shutil.disk_usage(given.folder).free / 1e9)
    driver = f"driver for CUDA {'.'.join(map(str, found.driver.cuda))}" if found.cards else "no card"
    nvcc = f"nvcc {found.version or 'not found'}"
    print("; ".join(filter(None, [*map(str, found.cards), driver, nvcc, found.problem])))
    sys.exit(given.device == "cuda" and not found.usable)
