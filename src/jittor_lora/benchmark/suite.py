"""The workloads that are measured, and the contenders."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jittor_lora.benchmark import base, flops, ring, workloads
from jittor_lora.benchmark.formats import Files
from jittor_lora.benchmark.ring import OURS, Ring
from jittor_lora.benchmark.tools import Tool, versions
from jittor_lora.benchmark.turns import Contender, take_turns
from jittor_lora.benchmark.workloads import Workload
from jittor_lora.files.atomic import make_writable, write_json
from jittor_lora.lora.config import DEFAULT_TARGETS
from jittor_lora.model.config import ModelConfig
from jittor_lora.settings.bench import BenchConfig
from jittor_lora.system.machine import cpu_flags
from jittor_lora.system.runtime import system_info

STEP = (4, 384)  # sequences, tokens in each
SCALING = (64, 256, 1024)  # tokens of one sequence
PROMPT, NEW = 64, 64  # tokens, in decoding
DECODING_BATCHES = (1, 8)
ANSWER = 32  # longest answer in tokens
EVALUATION_BATCHES = (16, 32, 64)
GEMMS = ((1536, 768, 3072), (1536, 3072, 768), (2048, 2048, 2048))  # m, k, n: the feed-forward layer of a step; large
GEMM_TIMES = 20
ADDITIVE_QUESTIONS = 64
ONE_PRECISION = ("additive", "adapters", "bandwidth", *ring.PARTS)
READ_GB, READ_TIMES = 0.5, 8
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def measure(config: BenchConfig, tools: dict[str, Tool], say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and write `bench.json` in the output folder, updated after every workload.

    Args:
        config: with `output` set.
        tools: the peers to measure, all installed.

    Returns: the content of the file.

    Raises:
        UserError: the base cannot be read, or the folder cannot be written.
    """
    make_writable(config.output)
    with tempfile.TemporaryDirectory(prefix="jittor-lora-") as folder:
        provided = base.provide(config.base, Path(folder, "base"))
        say(f"Base: {provided.description}")
        checkpoint, _ = workloads.open_base(provided.folder)
        report = {"base": provided.description, "settings": {**config.model_dump(), "tools": list(tools)},
                  "system": system(), "choices": {}, "results": []}
        suite = Suite(config, "peft" in tools, provided.folder.resolve(), checkpoint.config, report, say)
        blas = {"mlx-lm": {"LD_PRELOAD": config.mlx_blas}} if config.mlx_blas else {}
        suite.ring = Ring(Files(suite.base, provided.gguf, Path(folder, "formats")), config.format_names(),
                          config.precision_names(), tools, suite.fastest_arguments, blas, Path(folder))
        for part in config.part_names():
            suite.measure(part)
    return report


def system() -> dict[str, Any]:
    return {**system_info(), **versions(), "instructions": [name for name in INSTRUCTION_SETS if name in cpu_flags()]}


@dataclass
class Suite:
    """
    Args:
        peers: also measure transformers with PEFT.
        base: a Hugging Face folder.
        model: its sizes.
        report: the content of bench.json; results are added.
        ring: what compares storage formats.
    """

    config: BenchConfig
    peers: bool
    base: Path
    model: ModelConfig
    report: dict[str, Any]
    say: Callable[[str], None]
    ring: Ring | None = None

    def measure(self, part: str) -> None:
        precisions = self.config.precision_names()[: 1 if part in ONE_PRECISION else None]
        for threads in sorted({1, self.config.threads}) if part == "scaling" else [self.config.threads]:
            for precision in precisions:
                for workload in self.workloads(part):
                    self.compare(part, workload, precision, threads)

    def compare(self, part: str, workload: Workload, precision: str, threads: int) -> None:
        contenders = self.contenders(part, workload, precision)
        result = {"part": part, "workload": workload.name, "precision": precision, "threads": threads,
                  "unit": workload.unit, "units": workload.units, "gflop": self.gflop(workload),
                  "time": time.time(), "load_before": os.getloadavg()[0]}
        once = part in ("memory", "logits")
        result["contenders"] = self.turns(workload, precision, threads, contenders,
                                          0 if once else self.config.warmups, 1 if once else self.config.repeats)
        if part == "logits":
            ring.differences(result["contenders"])
        if part == "text":
            result["read_per_token"] = self.ring.read_per_token()
        self.report["results"].append(result)
        write_json(Path(self.config.output, "bench.json"), self.report)

    def workloads(self, part: str) -> list[Workload]:
        c = self.config
        if part in ring.PARTS:
            return ring.workloads_of(part, self.model, self.base)
        if part == "bandwidth":
            return [Workload("reading memory", "read", {"gigabytes": READ_GB, "times": READ_TIMES}, "GB",
                             READ_GB * READ_TIMES)]
        if part == "gemm":
            return [Workload(f"{m} × {k} × {n}", "gemm", {"m": m, "k": k, "n": n, "times": GEMM_TIMES}, "GFLOP",
                             GEMM_TIMES * flops.product(m, k, n) / 1e9) for m, k, n in GEMMS]
        if part == "step":
            sequences, length = STEP[0], min(STEP[1], self.model.max_positions)
            return [Workload(f"{rows} rows scored", "step", {"shape": (sequences, length), "rows": rows}, "token",
                             sequences * length) for rows in ("all", "answer")]
        if part == "scaling":
            return [Workload(f"1 × {n}", "step", {"shape": (1, n), "rows": "all"}, "token", n)
                    for n in SCALING if n <= self.model.max_positions]
        if part == "adapters":
            length = min(STEP[1], self.model.max_positions)
            return [Workload("step", "adapter", {"shape": (STEP[0], length), "rows": "answer"}, "token",
                             STEP[0] * length)]
        if part == "decode":
            return [Workload(f"batch {n}", "decode", {"batch": n, "prompt": PROMPT, "new": NEW}, "token", n * NEW)
                    for n in DECODING_BATCHES]
        if part == "evaluate":
            return [Workload("answers", "evaluate", {"questions": c.evaluated, "new": ANSWER}, "question",
                             c.evaluated)]
        if part == "memory":
            return [Workload("long training", "memory", {"questions": c.questions, "steps": c.memory_steps}, "step",
                             c.memory_steps)]
        count = c.questions if part == "squad" else ADDITIVE_QUESTIONS
        return [Workload("epoch", "squad", {"questions": count}, "question", count)]

    def contenders(self, part: str, workload: Workload, precision: str) -> list[Contender]:
        """The contenders for a workload, ours first."""
        if part in ring.PARTS:
            return self.ring.contenders(workload)
        if part == "bandwidth":
            return [Contender("memory", "memory_speed")]
        ours = [Contender(OURS, "ours")]
        if part == "additive":
            return self.additive()
        if part == "adapters":
            return [Contender(name, "ours", spec={"lora": options}) for name, options in self.kinds_of_adapters()]
        if part == "memory" or not self.peers:
            return ours
        if part == "gemm":
            return [*ours, Contender("torch", "peers")]
        if part == "decode":
            return [*ours, Contender("transformers", "peers", spec={"cache": "dynamic"}),
                    Contender("transformers, static cache", "peers", spec={"cache": "static"})]
        if part == "evaluate":
            batch = self.choice(f"batch of the evaluation, {precision}", lambda: self.fastest_batch(precision))
            return [*ours, Contender(f"transformers, batches of {batch}", "peers", spec={"batch": batch})]
        options = self.choice("PEFT in bf16", self.fastest_bf16) if precision == "bf16" else {}
        if part == "squad":
            return [*ours, *(Contender(f"PEFT, {name}", "peers", options, {"order": order, "logits": logits})
                             for name, order, logits in (("random batches", "random", "all"),
                                                         ("batches by length", "length", "all"),
                                                         ("batches by length, answer logits", "length", "labels")))]
        peers = [Contender("PEFT", "peers", options)]
        if workload.spec["rows"] == "answer":
            peers.append(Contender("PEFT, answer logits", "peers", options, {"logits": "labels"}))
        if part == "step" and self.config.compile:
            peers.append(Contender("PEFT, torch.compile", "peers", {**options, "compile": True}))
        return [*ours, *peers]

    def kinds_of_adapters(self) -> list[tuple[str, dict[str, Any]]]:
        """Plain LoRA and its variants, with their arguments of `LoraConfig`."""
        gpt2 = self.model.family == "gpt2"
        norm, embedding = ("ln_f", "wte") if gpt2 else ("model.norm", "embed_tokens")
        queries_values = {"target_modules": ("q_proj", "v_proj")}
        if gpt2:
            queries_values = {"target_modules": ("c_attn",), "qv_only": True}
        usual = DEFAULT_TARGETS[self.model.family]
        return [("LoRA", {}), ("queries and values only", queries_values), ("dropout 0.1", {"dropout": 0.1}),
                ("r = 64", {"r": 64}), ("rsLoRA", {"use_rslora": True}), ("DoRA", {"use_dora": True}),
                ("PiSSA", {"init": "pissa_niter_4"}), ("OLoRA", {"init": "olora"}),
                *([("biases of adapted layers", {"bias": "lora_only"})] if gpt2 else []),
                (f"{norm} whole", {"modules_to_save": (norm,)}),
                (f"{embedding} adapted too", {"target_modules": (*usual, embedding)}),
                (f"{embedding} whole", {"modules_to_save": (embedding,)})]

    def additive(self) -> list[Contender]:
        """Ours, each with one thing more than the one before."""
        everything = {"share": False, "logits": "all"}
        separate, shared = {"share": False, "logits": "labels"}, {"share": True, "logits": "labels"}
        steps = [Contender("stock Jittor, separate examples, logits of all rows", "ours",
                           {"kernels": []}, everything),
                 Contender("+ attention kernel", "ours", {"kernels": ["attention"]}, everything),
                 Contender("+ fused linear", "ours", {"kernels": ["attention", "linear"]}, everything),
                 Contender("+ the other kernels", "ours", {}, everything),
                 Contender("+ label rows only", "ours", {}, separate),
                 Contender("+ shared prefixes", "ours", {}, shared)]
        if "bf16" in self.config.precision_names():
            steps.append(Contender("+ bf16", "ours", {"precision": "bf16"}, shared))
        return steps

    def choice(self, name: str, choose: Callable[[], dict[str, Any]]) -> Any:
        """A setting of a peer, found once by trying the options."""
        if name not in self.report["choices"]:
            self.report["choices"][name] = choose()
        return self.report["choices"][name]["best"]

    def fastest_bf16(self) -> dict[str, Any]:
        """The fastest `options` of peers.py for PEFT in bf16."""
        return self.fastest(self.workloads("step")[0], "bf16", [
            Contender("bf16 weights", "peers"), Contender("autocast", "peers", {"autocast": True})],
            lambda contender: contender.options, warmups=1, repeats=3)

    def fastest_batch(self, precision: str) -> dict[str, Any]:
        """The fastest batch size for transformers' answers."""
        return self.fastest(self.workloads("evaluate")[0], precision, [
            Contender(f"{n}", "peers", spec={"batch": n}) for n in EVALUATION_BATCHES],
            lambda contender: contender.spec["batch"], warmups=0, repeats=1)

    def fastest_arguments(self, name: str, workload: Workload, contenders: list[Contender]) -> dict[str, Any]:
        """The fastest `spec` of a peer, by the report's name for the choice."""
        return self.choice(name, lambda: self.fastest(workload, self.config.precision_names()[0], contenders,
                                                      lambda contender: contender.spec, warmups=1, repeats=2))

    def fastest(self, workload: Workload, precision: str, contenders: list[Contender],
                setting: Callable[[Contender], Any], warmups: int, repeats: int) -> dict[str, Any]:
        records = self.turns(workload, precision, self.config.threads, contenders, warmups, repeats)
        seconds = [min((run["seconds"] for run in record["runs"]), default=float("inf")) for record in records]
        best = contenders[seconds.index(min(seconds))]
        return {"best": setting(best), "tried": records}

    def turns(self, workload: Workload, precision: str, threads: int, contenders: list[Contender], warmups: int,
              repeats: int) -> list[dict[str, Any]]:
        self.say(f"{workload.job}: {workload.name}, {precision}, {threads} thread{'s' if threads > 1 else ''}")
        options = {"base": str(self.base), "threads": threads, "precision": precision}
        return take_turns(contenders, options, workload.job, workload.spec, warmups, repeats,
                          Path(self.config.output, "workers.log"), self.say)

    def gflop(self, workload: Workload) -> float | None:
        """The work of a run, if it is the same for all contenders."""
        if workload.job != "step" or workload.spec["rows"] != "all":
            return None
        sequences, length = workload.spec["shape"]
        return flops.training_step(self.model, [length] * sequences, sequences * length, workloads.RANK) / 1e9
