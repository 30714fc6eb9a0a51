"""Shows a data set as the model sees it: counts, lengths, and a batch with its scored tokens marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jittor_lora.data.encoding import TokenizerLike
from jittor_lora.data.examples import Data, TokenGroup
from jittor_lora.data.squad import SquadData
from jittor_lora.data.stream import build_stream, rows

QUANTILES = (("shortest", 0.0), ("5 %", 0.05), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("95 %", 0.95),
             ("longest", 1.0))


class DisplayTokenizer(TokenizerLike, Protocol):
    """A tokenizer that also decodes; incomplete characters become U+FFFD."""

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Marks:
    """How scored tokens are set off: (before, after) those of weight 1, and those of a smaller weight."""

    full: tuple[str, str]
    part: tuple[str, str]
    faint: tuple[str, str]  # around text that is not from the data


BRACKETS = Marks(("[[", "]]"), ("((", "))"), ("", ""))
COLOURS = Marks(("\x1b[1;30;42m", "\x1b[0m"), ("\x1b[30;43m", "\x1b[0m"), ("\x1b[2m", "\x1b[0m"))


def describe_data(data: Data) -> str:
    """One sentence on the content of a file."""
    if isinstance(data, SquadData):
        articles = len({paragraph.title for paragraph in data.paragraphs})
        sizes = (articles, "article"), (len(data.paragraphs), "paragraph"), (len(data), "question")
        text = "SQuAD, " + ", ".join(counted(*size) for size in sizes)
        if data.no_answers:
            text += f", {sum(not q.answers for p in data.paragraphs for q in p.questions):,} of them without an answer"
        if data.moved_answers:
            text += f"; {counted(data.moved_answers, 'answer')} moved to where the text occurs"
        return text
    return f"{counted(len(data), 'completion')} of {counted(len(data.prompts), 'prompt')}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 1,024 rows."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def length_table(groups: Sequence[TokenGroup]) -> list[str]:
    """Lines of a table: lengths in tokens of prefixes, prompts, completions and whole examples."""
    branches = [(len(g.prefix), len(b.prompt), len(b.completion)) for g in groups for b in g.branches]
    prefix, prompt, completion = np.array(branches).T
    parts = (
        ("prefix (shared)", np.array([len(group.prefix) for group in groups])),
        ("rest of the prompt", prompt),
        ("completion", completion),
        ("whole example", prefix + prompt + completion),
    )
    lines = [f"{'tokens':20}" + "".join(f"{name:>10}" for name, _ in QUANTILES) + f"{'mean':>10}"]
    for name, lengths in parts:
        values = np.quantile(lengths, [q for _, q in QUANTILES], method="nearest")
        lines.append(f"{name:20}" + "".join(f"{int(value):10,}" for value in values) + f"{lengths.mean():10.1f}")
    return lines


@dataclass(frozen=True)
class EpochSize:
    """The size of one epoch, in rows computed (tokens read) and tokens scored.

    Attributes:
        steps, questions: their numbers.
        shared, separate, padded: rows with prefixes shared within each batch, with a copy per example, and with each
            batch padded to its longest example.
        scored: tokens of weight 1.
        closed: examples whose last scored token is end of text.
    """

    steps: int
    questions: int
    shared: int
    separate: int
    padded: int
    scored: int
    closed: int

    @classmethod
    def of(cls, epoch: Sequence[Sequence[TokenGroup]], eos_id: int | None) -> EpochSize:
        """Count the batches of one epoch (see `stream.batches`)."""
        lengths = [[rows(g.prefix, [b]) for g in batch for b in g.branches] for batch in epoch]
        completions = [b.completion for batch in epoch for g in batch for b in g.branches]
        return cls(
            steps=len(epoch),
            questions=len(completions),
            shared=sum(rows(g.prefix, g.branches) for batch in epoch for g in batch),
            separate=sum(map(sum, lengths)),
            padded=sum(len(batch) * max(batch) for batch in lengths),
            scored=sum(map(len, completions)),
            closed=sum(completion[-1:] == [eos_id] for completion in completions),
        )

    def lines(self) -> list[str]:
        """Sentences for the screen."""
        a, b, c = (count / self.questions for count in (self.shared, self.separate, self.padded))
        if self.closed == self.questions:
            end = "scored in every example"
        elif self.closed:
            end = f"scored in {self.closed:,} of {self.questions:,} examples"
        else:
            end = "not scored (the tokenizer has none)"
        return [
            f"an epoch: {self.questions:,} examples in {self.steps:,} batches",
            f"tokens read per example: {a:.1f} with shared prefixes, {b:.1f} as separate examples, {c:.1f} padded",
            f"scored: {self.scored:,} completion tokens, {self.scored / self.separate:.1%} of separate examples, "
            f"{self.scored / self.shared:.1%} of the rows computed with shared prefixes",
            f"end of text: {end}",
        ]


def batch_lines(
    batch: Sequence[TokenGroup], tokenizer: DisplayTokenizer, prompt_loss_weight: float, marks: Marks
) -> Iterator[str]:
    """A batch as text with every scored token marked; the marks come from the very stream that is trained on."""
    count = sum(len(group.branches) for group in batch)
    stream = build_stream(batch, prompt_loss_weight)
    yield _faint(f"{count} examples, {len(batch)} groups: {len(stream.tokens):,} rows, "
                 f"{len(stream.labels):,} labels, weight {stream.total_weight:g}", marks)
    for group in batch:
        for i, branch in enumerate(group.branches):
            tokens, weights = _weighted(group.with_branches([branch]), prompt_loss_weight)
            cut = len(group.prefix)
            if i == 0 and cut:
                yield _faint(f"--- prefix, {cut} tokens", marks)
                yield _marked(tokens[:cut], weights[:cut], tokenizer, marks)
            yield _faint(f"--- {printable(branch.id)}, from position {cut}", marks)
            yield _marked(tokens[cut:], weights[cut:], tokenizer, marks)


def printable(text: str) -> str:
    """Text that is safe for a terminal: control characters except newline and tab are escaped."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _weighted(group: TokenGroup, prompt_loss_weight: float) -> tuple[list[int], np.ndarray]:
    """The tokens of a group's only example, and the weight of each as a label (0 if it is not one)."""
    stream = build_stream([group], prompt_loss_weight)
    weights = np.zeros(len(stream.tokens) + 1, np.float32)
    weights[stream.label_rows + 1] = stream.label_weights
    return [*stream.tokens.tolist(), int(stream.labels[-1])], weights


def _marked(tokens: list[int], weights: np.ndarray, tokenizer: DisplayTokenizer, marks: Marks) -> str:
    parts, start = [], 0
    for end in range(1, len(tokens) + 1):
        piece = tokenizer.decode(tokens[start:end])
        same = end < len(tokens) and weights[end] == weights[start]
        # Unscored tokens are shown as one run, scored ones singly unless several make up one character.
        if same and (not weights[start] or piece.endswith("\ufffd")):
            continue
        before, after = marks.full if weights[start] == 1 else marks.part if weights[start] else ("", "")
        parts.append(before + printable(piece) + after)
        start = end
    return "".join(parts)


def _faint(text: str, marks: Marks) -> str:
    return marks.faint[0] + text + marks.faint[1]
