"""The inputs of each measurement, the same for every contender. Nothing here imports Jittor or torch."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jittor_lora.data.examples import prompt_groups, training_groups
from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.sources import load_data
from jittor_lora.data.subset import shuffled
from jittor_lora.data.template import Template
from jittor_lora.formats.bases import ResolvedBase, load_base
from jittor_lora.formats.hugging_face import Checkpoint
from jittor_lora.formats.tokenizer import Tokenizer

# Adapter and optimiser settings of every training run; dropout is off, so that losses are comparable.
RANK, ALPHA, LEARNING_RATE, MAX_GRAD_NORM = 8, 16.0, 2e-4, 1.0
BATCH_SIZE = 8  # questions per optimiser step
ANSWER_ROWS = 6  # scored rows per sequence if only an answer is scored: about the length of a SQuAD answer
CHECKED_QUESTIONS = 32
IGNORED = -100  # torch's label for ignored rows


@dataclass(frozen=True)
class Workload:
    """
    Args:
        job, spec: method of the contenders, and its arguments.
        unit, units: the unit of work, and the number of units in one run.
    """

    name: str
    job: str
    spec: dict[str, Any]
    unit: str
    units: float


class Example(NamedTuple):
    """One question for a tool without shared prefixes."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def open_base(folder: Path) -> tuple[Checkpoint, Tokenizer]:
    return load_base(ResolvedBase(str(folder), folder, "folder", ""), say=lambda text: None)


def step_tokens(shape: Sequence[int], vocab_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and the label of each row, both (sequences, length) int32."""
    draw = np.random.RandomState(seed)
    tokens, labels = draw.randint(0, vocab_size, (2, *shape)).astype(np.int32)
    return tokens, labels


def scored(labels: np.ndarray, rows: str) -> np.ndarray:
    """The labels, with `IGNORED` on the rows that are not scored: none ("all"), or all but the last few ("answer")."""
    if rows == "all":
        return labels
    kept = np.full_like(labels, IGNORED)
    kept[:, -ANSWER_ROWS:] = labels[:, -ANSWER_ROWS:]
    return kept


def adapter_values(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Values of a trained adapter: neither A nor B is zero, so that all of it affects the loss.

    Args:
        shapes: "<module>.lora_A" or "<module>.lora_B" → shape.
    """
    return {name: (np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape) * 0.02).astype(np.float32)
            for name, shape in shapes.items()}


def training_questions(checkpoint: Checkpoint, tokenizer: Tokenizer, count: int) -> list[TokenGroup]:
    """Training questions from the shipped sample, in whole paragraphs."""
    data = load_data("sample-train", "train").subset(count, seed=0)
    return training_groups(data, tokenizer, Template(), checkpoint.config.max_positions)[0]


def prompts(checkpoint: Checkpoint, tokenizer: Tokenizer, count: int, new_tokens: int) -> list[TokenGroup]:
    """Questions from the shipped sample, with space for answers of `new_tokens` tokens."""
    data = load_data("sample-dev", "dev", "evaluation").subset(count, seed=0)
    return prompt_groups(data, tokenizer, Template(), checkpoint.config.max_positions - new_tokens)[0]


def examples(groups: Sequence[TokenGroup]) -> list[Example]:
    """Each question separately, with its paragraph in its prompt."""
    return [Example(g.prefix + b.prompt, b.completion) for g in groups for b in g.branches]


def first_questions(groups: Sequence[TokenGroup], count: int = CHECKED_QUESTIONS) -> list[TokenGroup]:
    """The groups of the first `count` questions."""
    first = []
    for group in groups:
        branches = group.branches[:count]
        if not branches:
            break
        first.append(group.with_branches(branches))
        count -= len(branches)
    return first


def padded_batches(examples: Sequence[Example], order: str, epoch: int) -> Iterator[list[Example]]:
    """One epoch in batches of `BATCH_SIZE`.

    Args:
        order: "random", or "length": all examples sorted by length, then the batches shuffled. This pads less than the
            usual grouping by length, which sorts within chunks.
    """
    random = np.random.Philox(np.random.SeedSequence([0, epoch]))
    mixed = [examples[i] for i in shuffled(len(examples), random)]
    if order == "length":
        mixed.sort(key=len)
    batches = [mixed[i : i + BATCH_SIZE] for i in range(0, len(mixed), BATCH_SIZE)]
    if order == "length":
        batches = [batches[i] for i in shuffled(len(batches), random)]
    yield from batches


def padded(batch: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, padded on the right, and the label of each row, (B, T) int64.

    Rows are inputs, as in a stream: the last token of an example is a label only.
    """
    longest = max(map(len, batch)) - 1
    tokens = np.zeros((len(batch), longest), np.int64)
    labels = np.full_like(tokens, IGNORED)
    for row, example in enumerate(batch):
        text, first = example.prompt + example.completion, len(example.prompt) - 1
        tokens[row, : len(text) - 1] = text[:-1]
        labels[row, first : len(text) - 1] = example.completion
    return tokens, labels


def newline_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer besides end of text: those that contain a newline."""
    return [token for token in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([token])]
