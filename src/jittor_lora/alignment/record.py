"""What one side of an alignment leaves in its folder, `jittor/` or `pytorch/`.

| file | content |
|---|---|
| `facts.json` | versions, settings, machine, seconds, bytes |
| `base.json` | tensor name → {"shape", "sum", "norm"} of the base's weights as loaded, in the checkpoint's shapes |
| `steps.csv` | one line per step, the columns of `StepRecord` |
| `train.log` | the same as text, written while training |
| `first_step.safetensors` | the first batch around the first update, see `Record.first_step`; "loss" (1,) |
| `initial_adapter/`, `adapter/` | the adapter before and after training, in PEFT's layout |
| `held_out.safetensors` | logits on held-out texts after training, "0", "1", …: (label rows, vocabulary) |
| `answers.json` | id → greedy answer after training |

Both sides write the same names: those of the modules in the checkpoint, with PEFT's for the adapter. Only our side's
order of arrays counts: the safetensors package sorts them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

FACTS, BASE, STEPS, LOG = "facts.json", "base.json", "steps.csv", "train.log"
FIRST_STEP, HELD_OUT, ANSWERS = "first_step.safetensors", "held_out.safetensors", "answers.json"
INITIAL_ADAPTER, ADAPTER = "initial_adapter", "adapter"
JITTOR, PYTORCH = "jittor", "pytorch"  # folders


@dataclass(frozen=True)
class StepRecord:
    """One step.

    Attributes:
        step: from 1.
        loss: mean per label, in nats.
        grad_norm: before clipping.
        learning_rate: of this step.
        labels: number of tokens that were scored.
        tokens: rows that were computed.
        seconds: of wall time.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    labels: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Facts:
    """
    Attributes:
        framework: "jittor-lora" or "PyTorch".
        versions: package → version.
        machine: "processor", "cores", "memory", "platform".
        settings: threads, precision, device, attention implementation; what explains time and memory.
        training_seconds: of all steps, without loading, validation and answers.
        peak_bytes: the process' largest resident memory.
    """

    framework: str
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    training_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Record:
    """
    Attributes:
        base: tensor name → (shape, sum, Euclidean norm), float64.
        first_step: float32 arrays, in the order of computation: "input.<module>" and "output.<module>" of every leaf
            module of the base for the first example of the first batch, (rows, features), without dropout;
            "logits" of its label rows; "gradient.<module>.lora_A" … of the first batch before clipping, and
            "updated.<module>.lora_A" … after one update, at the peak learning rate (with warm-up, the first step's is
            0), which is undone before training. All of it without dropout, even if training uses it. Of a long
            example only the last `inputs.MOST_ROWS` rows. Modules are named as in the checkpoint.
        loss_of_first_example: mean per label of that example; "loss" in the file.
        initial_adapter, adapter: "<module>.lora_A" (r, in), "<module>.lora_B" (out, r), …
        initial_scaling, scaling: adapted module → alpha / r, or what the settings say in its place.
        held_out: logits per text (label rows, vocabulary).
        answers: id → text.
    """

    facts: Facts
    base: Mapping[str, tuple[tuple[int, ...], float, float]]
    steps: tuple[StepRecord, ...]
    first_step: Mapping[str, np.ndarray]
    loss_of_first_example: float
    initial_adapter: Mapping[str, np.ndarray]
    initial_scaling: Mapping[str, float]
    adapter: Mapping[str, np.ndarray]
    scaling: Mapping[str, float]
    held_out: tuple[np.ndarray, ...]
    answers: Mapping[str, str]
