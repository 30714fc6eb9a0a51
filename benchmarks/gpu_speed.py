"""Training and decoding on a GPU, in turns with transformers and PEFT on the same GPU.

    python benchmarks/gpu_bases.py BASES
    python benchmarks/gpu_speed.py training gpt2 bf16 --bases BASES --output DIR
    python benchmarks/gpu_speed.py decoding smollm2 bf16 --bases BASES --output DIR --no-peers

A race starts each contender once, in its own process, and has them take turns at the jobs. Lines are added to
results.jsonl in the output folder after every job. The peers get their fastest settings: fused AdamW, sdpa, logits only
where a token is scored, batches by length, bf16 by autocast and as weights, and in `compiled`, torch.compile or the
static cache that transformers compiles. --device cpu and --tiny are for trying the script.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from gpu_bases import title
from gpu_results import Results

from jittor_lora.benchmark import flops, workloads
from jittor_lora.benchmark.device_memory import meter
from jittor_lora.benchmark.suite import OURS
from jittor_lora.benchmark.turns import Contender, Race
from jittor_lora.benchmark.workloads import Workload
from jittor_lora.model.config import ModelConfig
from jittor_lora.system.machine import available_cores

STEP, CPU_STEP = (8, 256), (2, 256)  # sequences, tokens in each
PROMPT, NEW, TEXTS = 64, 128, (1, 8)  # tokens; texts at a time
QUESTIONS, ANSWERED, LONGEST_ANSWER = 512, 200, 32
BATCH = 64  # questions that a peer answers at a time
LONGER = (1, 3)  # warm-ups and repeats of what takes longer than a step
SAMPLING = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
STOCK = "jittor-lora, Jittor's operators"
BEST = {"order": "length", "logits": "labels"}  # of a peer: batches by length, logits of scored rows
KINDS = ("training", "steps", "decoding", "stock", "compiled", "compiled-decoding", "cpu")
PRECISIONS = ("fp32", "tf32", "bf16")


def jobs(kind: str, model: ModelConfig, tiny: bool) -> list[Workload]:
    sequences, length = (2, 16) if tiny else CPU_STEP if kind == "cpu" else STEP
    steps = [Workload(f"{sequences} × {length} tokens, {rows} rows scored", "step",
                      {"shape": (sequences, length), "rows": rows}, "token", sequences * length)
             for rows in ("all", "answer")]
    new, questions, answered = (4, 32, 2) if tiny else (NEW, QUESTIONS, ANSWERED)
    longest = min(LONGEST_ANSWER, new)
    if kind == "cpu":
        return steps[:1]
    if kind in ("steps", "stock", "compiled"):
        return steps
    if kind == "training":
        return [*steps, Workload("an epoch of SQuAD", "squad", {"questions": questions}, "question", questions)]
    decoding = [Workload(f"{count} text{'s' if count > 1 else ''}, {how}", "decode",
                         {"batch": count, "prompt": PROMPT, "new": new, **more}, "token", count * new)
                for how, more in (("greedy", {}), ("sampled", {"sampling": SAMPLING})) for count in TEXTS]
    answers = Workload("answers to SQuAD", "evaluate", {"questions": answered, "new": longest, "batch": BATCH},
                       "question", answered)
    return decoding if kind == "compiled-decoding" else [*decoding, answers]


def contenders(kind: str, precision: str, environment: dict[str, str]) -> list[Contender]:
    """Ours first."""
    ours = Contender(OURS, "ours")
    if kind == "stock":
        return [ours, Contender(STOCK, "ours", {"kernels": []})]

    def peer(name: str, spec: dict[str, Any] | None = None, **options: Any) -> Contender:
        return Contender(name, "peers", options, {**BEST, **(spec or {})}, environment=environment)

    if kind == "compiled":
        return [ours, peer("PEFT, torch.compile", compile=True)]
    if kind == "compiled-decoding":
        return [ours, peer("transformers, static cache, compiled", {"cache": "static"})]
    if kind == "decoding":
        return [ours, peer("transformers", {"cache": "dynamic"})]
    if precision != "bf16":
        return [ours, peer("PEFT")]
    return [ours, peer("PEFT, autocast", autocast=True), peer("PEFT, bf16 weights")]


def measure(kind: str, base: str, precision: str, given: argparse.Namespace) -> None:
    results, folder = Results(given.output / "results.jsonl"), given.bases / base
    checkpoint, _ = workloads.open_base(folder)
    environment = {"PYTHONPATH": given.peers_path} if given.peers_path else {}
    entered = contenders(kind, precision, environment)
    if not given.peers:
        entered = [contender for contender in entered if contender.module == "ours"]
    steps = (1, 1) if given.tiny else (given.warmups, given.repeats)
    options = {"base": str(folder), "threads": given.threads, "precision": precision, "device": given.device}
    used = meter(os.environ) if given.device == "cuda" else None
    with Race(entered, options, given.output / "workers.log", say, used) as race:
        for job in jobs(kind, checkpoint.config, given.tiny):
            say(f"{base}, {precision}: {job.name}")
            records = race.run(job.job, job.spec, *(steps if job.job == "step" else map(min, steps, LONGER)))
            results.add("speed", kind=kind, model=title(base, given.tiny), precision=precision, workload=job.name,
                        job=job.job, device=given.device, threads=given.threads, unit=job.unit, units=job.units,
                        gflop=gflop(checkpoint.config, job), contenders=records)


def gflop(model: ModelConfig, job: Workload) -> float | None:
    """The work of a step whose rows are all scored, which is the same for all contenders."""
    if job.job != "step" or job.spec["rows"] != "all":
        return None
    sequences, length = job.spec["shape"]
    return flops.training_step(model, [length] * sequences, sequences * length, workloads.RANK) / 1e9


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("base", choices=("gpt2", "smollm2"))
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("--bases", type=Path, required=True, help="folder that gpu_bases.py filled")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="which Jittor must find too")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--warmups", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=11, help="of a step; longer jobs are repeated up to 3 times")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--peers-path", help="PYTHONPATH of the peers, if it is not this one")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    measure(given.kind, given.base, given.precision, given)


if __name__ == "__main__":
    main(sys.argv[1:])
