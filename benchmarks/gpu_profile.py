"""What a training step does on a GPU: launches, time of each kernel, and time in which no kernel runs.

    python benchmarks/gpu_profile.py ours gpt2 bf16 --bases BASES --output DIR
    python benchmarks/gpu_profile.py peers gpt2 bf16 --bases BASES --output DIR

torch's profiler, which reads NVIDIA's CUPTI, sees the kernels of the whole process, also Jittor's and ours. With
--device cpu, for trying the script, it sees torch's operators.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import defaultdict
from pathlib import Path

from gpu_bases import title
from gpu_results import Results
from gpu_speed import BEST, PRECISIONS, STEP

STEPS, WARMUPS, MOST = 3, 3, 40  # MOST: kernels that are listed


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("side", choices=("ours", "peers"))
    parser.add_argument("base", choices=("gpt2", "smollm2"))
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("--bases", type=Path, required=True, help="folder that gpu_bases.py filled")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", choices=("all", "answer"), default="all", help="that are scored")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    contender = importlib.import_module(f"jittor_lora.benchmark.{given.side}").Contender(
        str(given.bases / given.base), 1, given.precision, device=given.device)
    job = contender.step({"shape": (2, 16) if given.tiny else STEP, "rows": given.rows, **BEST})
    for _ in range(WARMUPS):
        job.run()
    from torch.profiler import ProfilerActivity, profile  # after Jittor, so that it is the one to load CUDA

    activities = [ProfilerActivity.CUDA] if given.device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        started = time.perf_counter()
        for _ in range(STEPS):
            job.run()
        seconds = time.perf_counter() - started
    kernels: dict[str, list[float]] = defaultdict(list)  # name -> milliseconds of each
    for event in profiled.events():
        if event.device_type.name == given.device.upper():
            kernels[event.name].append(event.time_range.elapsed_us() / 1e3)
    busy = sum(map(sum, kernels.values())) / STEPS
    longest = sorted(kernels, key=lambda name: -sum(kernels[name]))
    launches = sum(len(times) for name, times in kernels.items() if not name.startswith(("Memcpy", "Memset")))
    Results(given.output / "results.jsonl").add(
        "profile", side=given.side, model=title(given.base, given.tiny), precision=given.precision, rows=given.rows,
        launches=launches / STEPS, copies=sum(map(len, kernels.values())) / STEPS - launches / STEPS, busy_ms=busy,
        step_ms=1e3 * seconds / STEPS,
        kernels=[{"name": name, "times": len(kernels[name]) / STEPS, "ms": sum(kernels[name]) / STEPS}
                 for name in longest[:MOST]])
    print(f"{given.side}, {given.base}, {given.precision}: {launches / STEPS:.0f} launches, {busy:.2f} of "
          f"{1e3 * seconds / STEPS:.2f} ms in kernels", flush=True)
    for name in longest[:12]:
        print(f"  {sum(kernels[name]) / STEPS:7.3f} ms  {len(kernels[name]) / STEPS:5.0f} × {name[:90]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
