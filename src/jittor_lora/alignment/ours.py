"""Our side of an alignment: trains through the ordinary training code and leaves a record."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jittor_lora.alignment import record as names
from jittor_lora.alignment.inputs import MOST_ROWS, Inputs, label_rows
from jittor_lora.alignment.read_record import LOSS, STEP_COLUMNS
from jittor_lora.alignment.record import StepRecord
from jittor_lora.alignment.watching import watched
from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import build_stream
from jittor_lora.errors import Stopped
from jittor_lora.evaluation.predictions import write_predictions
from jittor_lora.files.atomic import atomic_folder, atomic_write, write_json
from jittor_lora.formats.safetensors_file import write_safetensors
from jittor_lora.inference.generator import Generator
from jittor_lora.lora.selection import base_modules
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.ops.backend import OPERATIONS, has_kernel
from jittor_lora.system.runtime import jt, system_info, threads
from jittor_lora.tasks.answering import answer
from jittor_lora.tasks.train import Prepared
from jittor_lora.training.gradients import stream_loss
from jittor_lora.training.log import NoLog
from jittor_lora.training.loop import train
from jittor_lora.training.optimizer import clip_scale, optimizer_of
from jittor_lora.training.progress import Progress
from jittor_lora.training.progress_bar import peak_memory_bytes
from jittor_lora.training.step import Computation


def run_here(inputs: Inputs, folder: Path) -> None:
    """Train, and leave the record in `folder`, which is complete or not there.

    Raises:
        UserError: see `training.loop.train`.
        Stopped: a signal asked to end.
    """
    prepared = inputs.prepared
    config, session, trainable = prepared.config, prepared.session, prepared.method.trainable
    with atomic_folder(folder) as stage:
        write_json(stage / names.BASE, _sums(session.model))
        session.save_adapter(stage / names.INITIAL_ADAPTER, convert=False)
        _write_arrays(stage / names.FIRST_STEP, _first_step(inputs))
        with open(stage / names.LOG, "w", encoding="utf-8") as stream:
            log = _StepLog(stream, [_labels(step, config.prompt_loss_weight) for step in inputs.steps])
            outcome = train(session.model, trainable, prepared.groups, [], config, log, prepared.optimizer, Progress(),
                            lambda progress: None, lambda progress: None)
        if outcome.signal is not None:
            raise Stopped(outcome.signal)
        _write_steps(stage / names.STEPS, log.steps)
        write_json(stage / names.FACTS, _facts(log.steps))
        session.save_adapter(stage / names.ADAPTER, convert=False)
        _write_arrays(stage / names.HELD_OUT, {str(number): _logits(session.model, group, config.prompt_loss_weight)
                                               for number, group in enumerate(inputs.held_out)})
        write_predictions(stage / names.ANSWERS, _answers(inputs))


class _StepLog(NoLog):
    """Keeps the steps, and writes each as a line to a file and to the screen.

    Args:
        labels: number of labels of each step.
    """

    def __init__(self, stream, labels: Sequence[int]):
        self._stream, self._labels = stream, labels
        self.steps: list[StepRecord] = []

    def step(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, tokens: int, seconds: float,
             **_: Any) -> None:
        self.steps.append(StepRecord(step, loss, grad_norm, learning_rate, self._labels[step - 1], tokens, seconds))
        self.message(f"step {step}/{len(self._labels)}: loss {loss:.6f}, gradient norm {grad_norm:.6f}, learning rate "
                     f"{learning_rate:.4g}, {seconds:.2f} s")

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
        print(text, file=sys.stderr, flush=True)


def _first_step(inputs: Inputs) -> dict[str, np.ndarray]:
    """What happens before and in the first update, see `Record.first_step`: without dropout, at the peak learning rate.
    The update is undone."""
    prepared = inputs.prepared
    config = prepared.config.model_copy(update={"lora_dropout": 0.0})
    model, trainable = prepared.session.model, prepared.method.trainable
    arrays = _activations(model, inputs.first, config.prompt_loss_weight)
    stream = build_stream([inputs.first], config.prompt_loss_weight)
    with jt.no_grad():
        loss = stream_loss(model, stream, config.label_smoothing).item() / stream.total_weight
    arrays[LOSS] = np.array([loss], np.float32)

    before = {name: array.numpy().copy() for name, array in trainable.parameters().items()}
    step = Computation(model, trainable, config).step(0, inputs.steps[0])
    arrays.update((f"gradient.{name}", array) for name, array in _as_stored(prepared, step.gradients).items())
    optimizer_of(config, trainable).step(step.gradients, config.learning_rate,
                                         clip_scale(step.norm, config.max_grad_norm))
    arrays.update((f"updated.{name}", array) for name, array in _as_stored(prepared, trainable.parameters()).items())
    trainable.load(before)
    return arrays


def _activations(model: CausalLM, group: TokenGroup, prompt_loss_weight: float) -> dict[str, np.ndarray]:
    """Of one example as plain text, with all rows in every block; its last `MOST_ROWS` rows, and logits."""
    with jt.no_grad(), watched(model) as arrays:
        hidden = _hidden(model, group)
        rows = jt.array(np.array(label_rows(group, prompt_loss_weight), np.int32))
        logits = model.logits(hidden[rows]).numpy()
    found = {name: np.ascontiguousarray(array[-MOST_ROWS:]) for name, array in arrays.items()}
    return {**found, "logits": logits}


def _hidden(model: CausalLM, group: TokenGroup, rows: np.ndarray | None = None):
    """Final states of one example, which is read as plain text without its last token."""
    branch = group.branches[0]
    tokens = np.array(group.prefix + branch.prompt + branch.completion, np.int32)[:-1]
    return model.hidden(tokens, np.arange(len(tokens), dtype=np.int32), Layout.plain(len(tokens)), rows)


def _as_stored(prepared: Prepared, arrays: Mapping[str, jt.Var]) -> dict[str, np.ndarray]:
    """Arrays of parameters in the checkpoint's orientation."""
    bases = base_modules(prepared.session.model)
    found = {}
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        turned = part == "weight" and getattr(bases[module], "stored_transposed", False)
        found[name] = np.ascontiguousarray(array.numpy().T if turned else array.numpy())
    return found


def _logits(model: CausalLM, group: TokenGroup, prompt_loss_weight: float) -> np.ndarray:
    """(label rows, V) of one example."""
    rows = np.array(label_rows(group, prompt_loss_weight), np.int32)
    with jt.no_grad():
        return model.logits(_hidden(model, group, rows)).numpy()


def _labels(step: Sequence[TokenGroup], prompt_loss_weight: float) -> int:
    """Scored tokens of a step, those of a shared prefix once per example."""
    return len(build_stream(step, prompt_loss_weight, share_prefixes=False).labels)


def _answers(inputs: Inputs) -> dict[str, str]:
    if inputs.questions is None:
        return {}
    prepared = inputs.prepared
    generator = Generator(prepared.session.model, prepared.session.tokenizer, prepared.prompting.template,
                          prepared.chat)
    return answer(generator, inputs.questions).texts


def _sums(model: CausalLM) -> dict[str, dict[str, Any]]:
    """Shape, sum and norm of the base's tensors as the network holds them, in the checkpoint's orientation."""
    found = {}
    for name, module in base_modules(model).items():
        if name == OUTPUT_HEAD and model.config.tied_head:
            continue
        for part in ("weight", "bias"):
            value = getattr(module, part, None)
            if value is not None:
                array = value.numpy()
                shape = array.shape[::-1] if getattr(module, "stored_transposed", False) else array.shape
                found[f"{name}.{part}"] = {"shape": list(shape), "sum": float(array.sum(dtype=np.float64)),
                                           "norm": float(np.linalg.norm(array.astype(np.float64)))}
    return found


def _facts(steps: Sequence[StepRecord]) -> dict[str, Any]:
    system = system_info()
    return {
        "framework": "jittor-lora",
        "versions": {name.replace("_", "-"): system[name] for name in ("python", "jittor_lora", "jittor", "numpy",
                                                                       "onednn") if system[name]},
        "machine": {"processor": system["cpu"], "cores": str(system["cores"]),
                    "memory": f"{system['memory_gib']} GiB", "platform": system["platform"]},
        "settings": {"threads": threads(), "precision": "float32", "device": "cuda" if jt.flags.use_cuda else "cpu",
                     "attention": "fused kernel" if all(map(has_kernel, OPERATIONS)) else "stock operators"},
        "training_seconds": sum(step.seconds for step in steps),
        "peak_bytes": peak_memory_bytes(),
    }


def _write_steps(path: Path, steps: Sequence[StepRecord]) -> None:
    with atomic_write(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(STEP_COLUMNS)
        table.writerows(dataclasses.astuple(step) for step in steps)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_write(path, "wb") as stream:
        write_safetensors(stream, arrays, {name: array.shape for name, array in arrays.items()}, {"format": "pt"}, path)
