"""Runs that are resumed on a GPU: bit for bit on the same GPU, within bounds between GPU and CPU.

    python benchmarks/gpu_resume.py --bases BASES --output DIR --work RUNS

`jittor-lora train` runs some steps in float32, with dropout, on the device that Jittor finds and, with an empty
`nvcc_path`, on the CPU. Copies of both runs, cut back to their checkpoint in the middle, are then resumed: the GPU's on
the GPU and on the CPU, the CPU's on the GPU. Adapters and losses are compared, and lines added to results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from gpu_results import Results

from jittor_lora.formats.safetensors_file import SafetensorsFile

STEPS, HALF, QUESTIONS = 6, 3, 48
ADAPTER_BOUND, LOSS_BOUND = 1e-2, 1e-4  # between devices, in float32: largest relative difference
ADAPTER = Path("adapter", "adapter_model.safetensors")


def command(*arguments: object, cpu: bool, log: Path) -> None:
    """The command line in its own process.

    Raises:
        RuntimeError: it failed.
    """
    with open(log, "ab") as stream:
        done = subprocess.run([sys.executable, "-m", "jittor_lora", *map(str, arguments)], stdout=stream, stderr=stream,
                              stdin=subprocess.DEVNULL, env={**os.environ, **({"nvcc_path": ""} if cpu else {})})
    if done.returncode:
        raise RuntimeError(f"jittor-lora {arguments[0]} ended with code {done.returncode}; see {log}")


def cut_back(run: Path, copy: Path) -> None:
    """Copy a run folder as it was after its checkpoint in the middle."""
    shutil.copytree(run, copy)
    sorted((copy / "checkpoints").iterdir())[-1].unlink()
    for name in ("adapter", "best"):
        shutil.rmtree(copy / name, ignore_errors=True)
    (copy / "summary.json").unlink()


def adapter(run: Path) -> np.ndarray:
    """All numbers of a run's adapter."""
    tensors = SafetensorsFile(run / ADAPTER)
    return np.concatenate([np.asarray(tensors[name]).reshape(-1) for name in sorted(tensors)])


def losses(run: Path) -> np.ndarray:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return np.array([line["train_loss"] for line in lines if "train_loss" in line])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bases", type=Path, required=True, help="folder that gpu_bases.py filled")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs, emptied first")
    given = parser.parse_args(arguments)
    folder, results = given.work, Results(given.output / "results.jsonl")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = given.output / "resume.log"
    runs = {"device": folder / "device", "cpu": folder / "cpu"}
    for name, run in runs.items():
        command("train", "--base", given.bases / "gpt2", "--data", "sample-train", "--max-train", QUESTIONS,
                "--max-steps", STEPS, "--save-every", HALF, "--lora-dropout", "0.1", "--precision", "fp32",
                "--output", run, cpu=name == "cpu", log=log)
    good = True
    for name, start, cpu in (("on the same device", "device", False), ("begun on the CPU", "cpu", False),
                             ("continued on the CPU", "device", True)):
        resumed = folder / name.replace(" ", "-")
        cut_back(runs[start], resumed)
        command("train", "--resume", "--output", resumed, cpu=cpu, log=log)
        same = (resumed / ADAPTER).read_bytes() == (runs[start] / ADAPTER).read_bytes()
        apart = relative(adapter(resumed), adapter(runs[start])), relative(losses(resumed), losses(runs[start]))
        ok = same if cpu == (start == "cpu") else apart[0] <= ADAPTER_BOUND and apart[1] <= LOSS_BOUND
        results.add("resume", name=name, steps=STEPS, at=HALF, same_bits=same, adapter=apart[0], losses=apart[1],
                    ok=ok)
        print(f"{name}: {'the same bits' if same else 'adapter ±{:.1e}, losses ±{:.1e}'.format(*apart)}"
              f"{'' if ok else ': WRONG'}", flush=True)
        good = good and ok
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
