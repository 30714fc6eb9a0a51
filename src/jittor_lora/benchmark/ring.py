"""The parts that compare storage formats of the weights: every tool in every format takes turns at the same work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jittor_lora.benchmark import workloads
from jittor_lora.benchmark.formats import Files
from jittor_lora.benchmark.tools import Tool
from jittor_lora.benchmark.turns import Contender
from jittor_lora.benchmark.workloads import Workload
from jittor_lora.errors import UserError
from jittor_lora.model.config import ModelConfig

OURS = "jittor-lora"
EXACT = "float32"  # the reference of logits: ours on the decoded weights

PARTS = ("text", "texts", "prompt", "context", "training", "logits")
NEW = 64  # tokens after one, so that all time is that of decoding
TEXTS = 8
PROMPT = 512
QUESTIONS, ANSWER = 5, 16  # of one context, and tokens of each answer
STEP = (2, 256)  # sequences, tokens in each
PROBE = 128  # tokens whose logits are compared


def workloads_of(part: str, model: ModelConfig, base: Path) -> list[Workload]:
    """
    Args:
        base: a Hugging Face folder.
    """
    if part in ("text", "texts"):
        batch = 1 if part == "text" else TEXTS
        return [Workload("one text" if batch == 1 else f"{batch} texts", "decode",
                         {"batch": batch, "prompt": 1, "new": NEW}, "token", batch * NEW)]
    if part == "prompt":
        length = min(PROMPT, model.max_positions - 1)
        return [Workload(f"prompt of {length} tokens", "decode", {"batch": 1, "prompt": length, "new": 1}, "token",
                         length)]
    if part == "training":
        length = min(STEP[1], model.max_positions)
        return [Workload(f"step of {STEP[0]} × {length} tokens", "step", {"shape": (STEP[0], length), "rows": "all"},
                         "token", STEP[0] * length)]
    prefix, questions = questions_of_a_context(base)
    if part == "context":
        return [Workload(f"{len(questions)} questions of a context", "context",
                         {"prefix": prefix, "questions": questions, "new": ANSWER}, "question", len(questions))]
    return [Workload("logits", "logits", {"tokens": prefix[:PROBE]}, "token", len(prefix[:PROBE]))]


@dataclass
class Ring:
    """
    Args:
        files: the base in each format.
        formats: those that are measured.
        precisions: of our arithmetic.
        tools: the peers, by name.
        choose: name in the report, work, contenders -> the arguments of the fastest one.
        environments: tool -> variables of its process that name libraries, which its name in tables then does too.
        folder: for logits on their way.
    """

    files: Files
    formats: Sequence[str]
    precisions: Sequence[str]
    tools: dict[str, Tool]
    choose: Callable[[str, Workload, list[Contender]], dict[str, Any]]
    environments: dict[str, dict[str, str]]
    folder: Path

    def contenders(self, work: Workload) -> list[Contender]:
        """Ours first in each format, then the peers that can do this in it."""
        return [self._with_path(contender) if work.job == "logits" else contender
                for name in self.formats for contender in self._in_format(name, work)]

    def read_per_token(self) -> dict[str, int]:
        """Bytes of weights that each token meets, by format."""
        return {self.files.title(name): self.files.read_per_token(name) for name in self.formats}

    def _in_format(self, name: str, work: Workload) -> list[Contender]:
        job = work.job
        title, file = self.files.title(name), str(self.files.path(name))
        found = [] if job != "logits" else [
            Contender(EXACT, "ours", {"base": file, "base_precision": "fp32", "precision": "fp32"}, format=title)]
        for precision in self.precisions:
            shown = OURS if precision == "fp32" else f"{OURS}, {precision} products"
            found.append(Contender(shown, "ours", {"base": file, "precision": precision}, format=title))
        for peer, tool in self.tools.items():
            if job in tool.shown and name in tool.formats:
                added = {**tool.specs.get(job, {}), **self._fastest(peer, tool, work)}
                options = {**tool.formats[name], **({"base": file} if tool.reads_gguf else {})}
                environment = self.environments.get(peer, {})
                shown = " with ".join([tool.shown[job], *(Path(library).stem for library in environment.values())])
                found.append(Contender(shown, tool.module, options, added, title, environment))
        return found

    def _fastest(self, peer: str, tool: Tool, work: Workload) -> dict[str, Any]:
        """A peer's arguments: found once per work, in the last format."""
        several = work.job == "decode" and work.spec["batch"] > 1
        tried = tool.tried.get("decode of several texts" if several else work.job, {})
        if not tried:
            return {}
        name = next(name for name in reversed(self.formats) if name in tool.formats)
        options = {**tool.formats[name], **({"base": str(self.files.path(name))} if tool.reads_gguf else {})}
        fixed = tool.specs.get(work.job, {})
        return self.choose(f"{work.name}, {peer}", work, [
            Contender(shown, tool.module, options, {**fixed, **added}, environment=self.environments.get(peer, {}))
            for shown, added in tried.items()])

    def _with_path(self, contender: Contender) -> Contender:
        name = f"{contender.name}-{contender.format}".replace("/", "-").replace(" ", "-")
        return Contender(contender.name, contender.module, contender.options,
                         {**contender.spec, "path": str(self.folder / f"{name}.npy")}, contender.format,
                         contender.environment)


def differences(records: Sequence[dict[str, Any]]) -> None:
    """Puts in place of each contender's check how far its logits are from those of the same weights in float32: the
    largest and the mean absolute difference, and the share of rows with the same likeliest token."""
    exact: dict[str, np.ndarray] = {}
    for record in records:
        path = Path(record["spec"]["path"])
        if not path.exists():
            continue
        found = np.load(path)
        path.unlink()
        if record["name"] == EXACT:
            exact[record["format"]] = found
        elif record["format"] in exact:
            reference = exact[record["format"]]
            apart = np.abs(found - reference)
            record["check"] = {"max": float(apart.max()), "mean": float(apart.mean(dtype=np.float64)),
                               "same": float((found.argmax(1) == reference.argmax(1)).mean())}


def questions_of_a_context(base: Path) -> tuple[list[int], list[list[int]]]:
    """A context of the shipped sample with its first questions, as token ids: prefix, questions.

    Raises:
        UserError: no context has enough of them.
    """
    checkpoint, tokenizer = workloads.open_base(base)
    for group in workloads.prompts(checkpoint, tokenizer, 10**6, ANSWER):
        if len(group.branches) >= QUESTIONS:
            return group.prefix, [branch.prompt for branch in group.branches[:QUESTIONS]]
    raise UserError(f"No context of the sample fits the base with {QUESTIONS} questions; leave out the parts context "
                    "and logits.")
