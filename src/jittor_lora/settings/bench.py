"""The settings of a benchmark."""

from __future__ import annotations

from typing import Annotated, Optional

from jittor_lora.settings.base import PATH, Settings, setting
from jittor_lora.settings.text import list_of, names

PARTS = ("gemm", "step", "squad", "decode", "evaluate", "scaling", "memory", "additive", "adapters", "bandwidth",
         "text", "texts", "prompt", "context", "training", "logits")
PRECISIONS = ("fp32", "bf16")
FORMATS = ("file", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
TOOLS = ("peft", "llama.cpp", "mlx-lm")
WHAT, HOW = "What to measure", "How"

Parts = Annotated[str, list_of(PARTS)]
Precisions = Annotated[str, list_of(PRECISIONS)]
Formats = Annotated[str, list_of(FORMATS)]
Tools = Annotated[str, list_of(TOOLS)]


class BenchConfig(Settings):
    base: Optional[str] = setting(None, WHAT, "base model: a folder, a named base (gpt2, smollm2-135m) or a Hub id; by "
                                  "default a GPT-2 of 124M parameters with random weights", holds=PATH, min_length=1)
    parts: Parts = setting(",".join(PARTS), WHAT, "measurements, separated by commas")
    precisions: Precisions = setting(",".join(PRECISIONS), WHAT, "precisions, separated by commas")
    formats: Formats = setting("f32,bf16,q8_0,q4_0", WHAT, "storage formats of the weights in the parts from text to "
                           "logits, separated by commas; file is the base's own, a GGUF file")
    tools: Tools = setting(",".join(TOOLS), WHAT, "peers, separated by commas: peft (with transformers), llama.cpp, "
                         "mlx-lm")
    peers: Optional[bool] = setting(None, WHAT, "also measure the peers; by default those that are installed")
    mlx_blas: Optional[str] = setting(None, WHAT, "library that mlx takes in place of its own BLAS, such as OpenBLAS",
                                      holds=PATH, min_length=1)
    compile: bool = setting(False, WHAT, "also measure PEFT's training step under torch.compile")
    questions: int = setting(256, WHAT, "SQuAD questions per training run", ge=32)
    evaluated: int = setting(200, WHAT, "SQuAD questions per evaluation run", ge=1)
    memory_steps: int = setting(500, WHAT, "training steps for the test of memory growth", ge=1)

    threads: int = setting(2, HOW, "threads per contender", ge=1)
    repeats: int = setting(5, HOW, "counted runs per contender", ge=1)
    warmups: int = setting(1, HOW, "warm-up runs before them", ge=0)

    output: Optional[str] = setting(None, "Output", "folder for bench.json, bench.md and the processes' output",
                                    holds=PATH, min_length=1)

    def part_names(self) -> list[str]:
        return names(self.parts)

    def precision_names(self) -> list[str]:
        return names(self.precisions)

    def format_names(self) -> list[str]:
        return names(self.formats)

    def tool_names(self) -> list[str]:
        return names(self.tools)
