"""jittor-lora as a contender, through the same functions as training and evaluation."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jittor_lora import ops
from jittor_lora.benchmark import workloads
from jittor_lora.benchmark.worker import Job, memory
from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.layout import Layout
from jittor_lora.data.length_report import LengthReport
from jittor_lora.data.stream import Stream
from jittor_lora.inference.generate import generate
from jittor_lora.inference.generator import Generator
from jittor_lora.inference.sampling import GREEDY, Sampling
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import DEFAULT, inject
from jittor_lora.ops.backend import OPERATIONS
from jittor_lora.session import load
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import free_memory, jt, set_threads
from jittor_lora.tasks.answering import answer
from jittor_lora.tasks.questions import Questions
from jittor_lora.training.batches import steps_from, steps_per_epoch, streams_of
from jittor_lora.training.gradients import batch_gradients, mean_loss
from jittor_lora.training.optimizer import AdamW, clip_scale, gradient_norm

# A label weight that has a row's logits computed without changing the loss.
NO_WEIGHT = 1e-30


class Contender:
    """
    Args:
        base: a Hugging Face folder or a GGUF file.
        precision: of products: "fp32", "tf32" (on a GPU) or "bf16".
        kernels: operations (`ops.backend.OPERATIONS`) that use fused kernels, the others stock Jittor; by default all.
        base_precision: what weights are held in, see `session.load`.
        device: "cpu" or "cuda"; None for what Jittor finds.

    Raises:
        ValueError: this machine does not have the precision, or Jittor found another device.
    """

    def __init__(self, base: str, threads: int, precision: str, kernels: Sequence[str] | None = None,
                 base_precision: str = "auto", device: str | None = None):
        found = "cuda" if jt.flags.use_cuda else "cpu"
        if device not in (None, found):
            raise ValueError(f"Jittor computes on {found}, not on {device}")
        set_threads(threads)
        self.operations = contextlib.ExitStack()
        if kernels is not None:
            self.operations.enter_context(ops.portable_operations(*(set(OPERATIONS) - set(kernels))))
        self.session = load(base, precision=precision, base_precision=base_precision)
        self.precision = self.session.model.precision
        if self.precision != precision:
            raise ValueError(f"no {precision} on this machine")
        self.checkpoint, self.tokenizer = self.session.checkpoint, self.session.tokenizer

    def free(self) -> None:
        if self.session.adapters:
            self.session.delete_adapter(DEFAULT)
        free_memory()

    def step(self, spec: dict[str, Any]) -> Job:
        """A training step on random tokens, in one stream.

        Args:
            spec: shape: (sequences, length); rows: "all" or "answer".
        """
        stream, training, results = self._stream(spec), Training(self.session), []

        def run() -> None:
            results.append(training.step([stream]))
            jt.sync_all(True)

        return Job(run, lambda: {"loss": results[0][0], "gradient norm": results[0][1]})

    def adapter(self, spec: dict[str, Any]) -> Job:
        """A training step of one kind of adapter; the check is the number of trained values.

        Args:
            spec: as for `step`, and lora: arguments of `LoraConfig` besides rank, alpha and the default target modules.
        """
        stream, training = self._stream(spec), Training(self.session, **spec["lora"])
        return Job(lambda: training.step([stream]), training.adapter.count)

    def _stream(self, spec: dict[str, Any]) -> Stream:
        tokens, labels = workloads.step_tokens(spec["shape"], self.checkpoint.config.vocab_size)
        labels = workloads.scored(labels, spec["rows"]).reshape(-1)
        sequences, length = tokens.shape
        rows = np.flatnonzero(labels != workloads.IGNORED).astype(np.int32)
        return Stream(tokens.reshape(-1), np.tile(np.arange(length, dtype=np.int32), sequences),
                      Layout.plain(*[length] * sequences), rows, np.arange(len(rows), dtype=np.int32), labels[rows],
                      np.ones(len(rows), np.float32), [])

    def squad(self, spec: dict[str, Any]) -> Job:
        """An epoch on SQuAD questions.

        Args:
            spec: questions; share: compute a paragraph once for all its questions; logits: of "labels" or "all" rows.
        """
        training, batches, groups, config = self._squad(spec)
        check = {"loss": mean_loss(self.session.model, streams_of(workloads.first_questions(groups), config))}
        steps = steps_per_epoch(groups, config)

        def run() -> None:
            for streams in itertools.islice(batches, steps):
                training.step(streams)
            jt.sync_all(True)

        return Job(run, lambda: check)

    def memory(self, spec: dict[str, Any]) -> Job:
        """A long training run on SQuAD; the check is the resident memory in MiB after each step.

        Args:
            spec: as for `squad`, and steps.
        """
        training, batches, *_ = self._squad(spec)
        resident = []

        def run() -> None:
            for streams in itertools.islice(batches, spec["steps"]):
                training.step(streams)
                resident.append(memory()["rss_mib"])

        return Job(run, lambda: resident)

    def _squad(self, spec: dict[str, Any]) -> tuple[Training, Iterable[list[Stream]], list[TokenGroup], RunConfig]:
        groups = workloads.training_questions(self.checkpoint, self.tokenizer, spec["questions"])
        config = RunConfig(batch_size=workloads.BATCH_SIZE, lora_dropout=0.0, share_prefixes=spec.get("share", True),
                           prompt_loss_weight=NO_WEIGHT if spec.get("logits") == "all" else 0.0)
        batches = (streams_of(batch, config) for _, batch in steps_from(0, 2**31, groups, config))
        return Training(self.session), batches, groups, config

    def decode(self, spec: dict[str, Any]) -> Job:
        """Continuation of random prompts.

        Args:
            spec: batch, prompt, new: number of prompts, tokens per prompt, and new tokens; sampling: temperature, top_k
                and top_p; greedy if left out. Sampled tokens are not comparable.
        """
        prompts, _ = workloads.step_tokens((spec["batch"], spec["prompt"]), self.checkpoint.config.vocab_size)
        sampling, results = Sampling(**spec["sampling"]) if "sampling" in spec else GREEDY, []
        return Job(lambda: results.append(generate(self.session.model, [], prompts.tolist(), spec["new"], sampling)),
                   lambda: None if "sampling" in spec else {"tokens": results[0]})

    def context(self, spec: dict[str, Any]) -> Job:
        """Questions on a context that is read once.

        Args:
            spec: prefix, questions: token ids; new: tokens per answer.
        """
        results = []
        return Job(lambda: results.append(generate(self.session.model, spec["prefix"], spec["questions"], spec["new"])),
                   lambda: {"tokens": results[0]})

    def logits(self, spec: dict[str, Any]) -> Job:
        """The logits of all rows of a text, written to a file.

        Args:
            spec: tokens; path: of the .npy file, (T, V) float32.
        """
        tokens, model = np.array(spec["tokens"], np.int32), self.session.model

        def run() -> None:
            with jt.no_grad():
                hidden = model.hidden(tokens, np.arange(len(tokens), dtype=np.int32), Layout.plain(len(tokens)))
                np.save(spec["path"], model.logits(hidden).numpy())

        return Job(run, lambda: None)

    def evaluate(self, spec: dict[str, Any]) -> Job:
        """Greedy answers to SQuAD questions.

        Args:
            spec: questions; new: longest answer in tokens.
        """
        groups = workloads.prompts(self.checkpoint, self.tokenizer, spec["questions"], spec["new"])
        questions = Questions(groups, {}, LengthReport(self.checkpoint.config.max_positions), spec["new"])
        generator, results = Generator(self.session.model, self.tokenizer), []
        return Job(lambda: results.append(answer(generator, questions)),
                   lambda: {"answers": [results[0].texts[branch.id] for group in groups for branch in group.branches]})

    def gemm(self, spec: dict[str, Any]) -> Job:
        """Products of an (m, k) and a (k, n) matrix.

        Args:
            spec: m, k, n, and times: number of products.
        """
        draw = np.random.RandomState(0)
        a = jt.array(draw.standard_normal((spec["m"], spec["k"])).astype(np.float32))
        b = ops.Matrix.of(draw.standard_normal((spec["n"], spec["k"])).astype(np.float32), self.precision)

        def run() -> None:
            with jt.no_grad():
                for _ in range(spec["times"]):
                    ops.linear(a, b).sync(True)

        return Job(run, lambda: None)


class Training:
    """An adapter in the network with its optimiser; `step` does the same as a step of `training.loop.train`.

    Args:
        lora: arguments of `LoraConfig` besides, or instead of, rank, alpha and the default target modules.
    """

    def __init__(self, session, **lora: Any):
        self.model = session.model
        defaults = {"r": workloads.RANK, "alpha": workloads.ALPHA,
                    "target_modules": DEFAULT_TARGETS[self.model.config.family]}
        config = LoraConfig(**{**defaults, **lora})
        self.adapter = inject(self.model, config)
        parameters = self.adapter.parameters()
        if not config.changes_base:
            trained = workloads.adapter_values({name: tuple(p.shape) for name, p in parameters.items()
                                                if name.rsplit(".", 1)[-1] in ("lora_A", "lora_B")})
            self.adapter.load({name: trained.get(name, p.numpy()) for name, p in parameters.items()})
        self.optimizer = AdamW(parameters)

    def step(self, streams: Sequence[Stream]) -> tuple[float, float]:
        """Loss and gradient norm."""
        loss, gradients = batch_gradients(self.model, streams, self.adapter.parameters())
        norm = gradient_norm(gradients)
        self.optimizer.step(gradients, workloads.LEARNING_RATE, clip_scale(norm, workloads.MAX_GRAD_NORM))
        return loss, norm
