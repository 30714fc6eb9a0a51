"""Shows a data set as the model sees it: counts, lengths, and a batch with its scored tokens marked."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.conversations import ASSISTANT, SYSTEM, ConversationData
from jittor_lora.data.encoding import TokenizerLike
from jittor_lora.data.examples import Data
from jittor_lora.data.groups import Branch, TokenGroup
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


def describe_data(data: Data | ConversationData) -> str:
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
    if isinstance(data, ConversationData):
        return _conversations(data)
    name = f"{data.format}, " if data.format else ""
    groups = "".join(f", {len(ids):,} {group}" for group, ids in data.groups().items())
    left_out = f"; left out: {data.left_out}" if data.left_out else ""
    return f"{name}{counted(len(data), 'completion')} of {counted(len(data.prompts), 'prompt')}{groups}{left_out}"


def _conversations(data: ConversationData) -> str:
    turns = [turn for conversation in data.conversations for turn in conversation.turns if turn.role == ASSISTANT]
    parts = [data.format, counted(len(data), "conversation"),
             f"{counted(len(turns), 'turn')} of the assistant"]
    unscored = sum(not turn.scored for turn in turns)
    systems = sum(conversation.turns[0].role == SYSTEM for conversation in data.conversations)
    parts += [f"{unscored:,} of them not learnt"] if unscored else []
    parts += [f"{systems:,} with a system turn"] if systems else []
    left_out = f"; {counted(data.unanswered, 'last turn')} of a user left out, as no answer follows" \
        if data.unanswered else ""
    return ", ".join(parts) + left_out


def roles(data: Data) -> dict[str, str]:
    """Conversation id -> who speaks: "system, user, assistant"; of other data nothing."""
    if not isinstance(data, ConversationData):
        return {}
    return {c.id: ", ".join(turn.role if turn.scored else f"{turn.role} (not scored)" for turn in c.turns)
            for c in data.conversations}


def turn_ends(chat: ChatEncoder, tokenizer: DisplayTokenizer) -> list[str]:
    """Lines on the chat template, and on the tokens that end an assistant's turn in it."""
    ends = ", ".join(f"{printable(tokenizer.decode([token]))} ({token})" for token in sorted(chat.end_ids))
    return [f"chat template: {chat.template.origin}",
            f"the assistant's turns end with {ends}, which is scored" if ends else "no token ends an assistant's turn"]


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
        shared, separate, padded: rows with prefixes shared within each batch, with a copy per scored part of an
            example, and with each batch padded to its longest example.
        turns: separately scored parts of examples: the turns of an assistant, or one completion each.
        scored: tokens of weight 1.
        closed: examples whose last scored token ends a text.
    """

    steps: int
    questions: int
    shared: int
    separate: int
    padded: int
    turns: int
    scored: int
    closed: int

    @classmethod
    def of(cls, epoch: Sequence[Sequence[TokenGroup]], ends: Container[int]) -> EpochSize:
        """Count the batches of one epoch (see `stream.batches`); `ends` are the tokens that end a text."""
        lengths = [[rows(g.prefix, [b]) for g in batch for b in g.branches] for batch in epoch]
        branches = [b for batch in epoch for g in batch for b in g.branches]
        return cls(
            steps=len(epoch),
            questions=len(branches),
            shared=sum(rows(g.prefix, g.branches) for batch in epoch for g in batch),
            separate=sum(sum(_separately(g, b)) for batch in epoch for g in batch for b in g.branches),
            padded=sum(len(batch) * max(batch) for batch in lengths),
            turns=sum(len(_separately(g, b)) for batch in epoch for g in batch for b in g.branches),
            scored=sum(branch.scored for branch in branches),
            closed=sum(branch.completion[-1] in ends for branch in branches),
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
            f"tokens read per example: {a:.1f} with shared prefixes, {b:.1f} as separate examples"
            f"{f' of {self.turns:,} turns' if self.turns > self.questions else ''}, {c:.1f} padded",
            f"scored: {self.scored:,} completion tokens, {self.scored / self.separate:.1%} of separate examples, "
            f"{self.scored / self.shared:.1%} of the rows computed with shared prefixes",
            f"end of text: {end}",
        ]


def _separately(group: TokenGroup, branch: Branch) -> list[int]:
    """Rows of the examples that have a single scored part each: a conversation has one per turn of the assistant."""
    ends = [*(start for start, _ in branch.unscored), len(branch.completion)]
    return [len(group.prefix) + len(branch.prompt) + end - 1 for end in ends]


def batch_lines(
    batch: Sequence[TokenGroup], tokenizer: DisplayTokenizer, prompt_loss_weight: float, marks: Marks,
    described: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """A batch as text with every scored token marked; the marks come from the very stream that is trained on.

    Args:
        described: more to say of examples, by id.
    """
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
            more = f", {described[branch.id]}" if branch.id in described else ""
            yield _faint(f"--- {printable(branch.id)}, from position {cut}{more}", marks)
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
