"""The machine on which benchmarks/gpu.sh runs, as a line of its results.

    python benchmarks/gpu_machine.py results.jsonl --folder FOLDER
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
from pathlib import Path

from gpu_results import Results

from jittor_lora.benchmark.suite import system
from jittor_lora.system import cuda

PEERS = ("torch", "transformers", "peft", "numpy")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where the run keeps its files")
    given = parser.parse_args()
    found, versions = cuda.find(os.environ), {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    Results(given.results).add(
        "machine", system={**system(), **versions}, cards=[str(card) for card in found.cards],
        card=found.cards[0].name if found.cards else "", driver=".".join(map(str, found.driver.cuda)),
        nvcc=found.version, problem=found.problem, free_gb=shutil.disk_usage(given.folder).free / 1e9)
    print(f"{', '.join(map(str, found.cards)) or 'no card'}; driver for CUDA {'.'.join(map(str, found.driver.cuda))}; "
          f"nvcc {found.version}{'; ' + found.problem if found.problem else ''}")
