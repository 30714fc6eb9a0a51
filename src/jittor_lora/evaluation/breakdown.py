"""Scores by kind of question, and the questions with the worst and best answers."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jittor_lora.data.words import count_words, is_chinese
from jittor_lora.evaluation.bootstrap import Estimate, mean_interval
from jittor_lora.evaluation.compare import table
from jittor_lora.evaluation.items import OTHER, QUESTION_WORDS, Item
from jittor_lora.evaluation.scoring import QuestionScore, SquadScore

_ANSWER_WORDS = (1, 2, 3, 5, 10)  # inclusive upper bounds of the bins
_CONTEXT_WORDS = (80, 120, 160, 240)
_FIFTHS = ("first fifth", "second fifth", "third fifth", "fourth fifth", "last fifth")
_WORD_ORDER = (*QUESTION_WORDS[:-1], "how many", "how much", "how", OTHER)
UNKNOWN, NONE = "unknown", "no answer"


@dataclass(frozen=True)
class Group:
    """Questions of one kind: their number, and their scores in percent with 95 % intervals."""

    name: str
    count: int
    exact_match: Estimate
    f1: Estimate


def breakdowns(items: Sequence[Item], score: SquadScore, seed: int = 0) -> dict[str, list[Group]]:
    """Scores by question word, by length of answer and context in words (in Chinese and Japanese, characters), by place
    of the answer, and, where some questions have none, by whether there is an answer.

    Length and place are those of the training answer. Kinds that the data do not have (prompts come without contexts)
    are left out.

    Args:
        items: the questions, in the same order as in `score`.
    """
    kinds: dict[str, tuple[Callable[[Item], str], Sequence[str]]] = {
        "question word": (lambda item: item.question_word, _WORD_ORDER),
        "answer length": (lambda item: _bin(_length(item.answer), _ANSWER_WORDS) if item.references else NONE,
                          (*_bins(_ANSWER_WORDS), NONE)),
        "context length": (lambda item: _bin(_length(item.context), _CONTEXT_WORDS), _bins(_CONTEXT_WORDS)),
        "place of the answer": (_place, (*_FIFTHS, UNKNOWN, NONE)),
    }
    if not all(item.references for item in items):
        kinds["answer"] = (lambda item: "in the context" if item.references else NONE, ("in the context", NONE))
    if not any(item.context for item in items):
        kinds = {"answer length": kinds["answer length"]}
    return {kind: _groups(items, score, kind_of, order, seed) for kind, (kind_of, order) in kinds.items()}


def breakdown_table(groups: dict[str, list[Group]]) -> str:
    """The groups as a table for the terminal."""
    rows = [("", "questions", "EM", "95 %", "F1", "95 %")]
    for kind, members in groups.items():
        rows.append((kind, "", "", "", "", ""))
        rows += [(f"  {group.name}", f"{group.count:,}", *_cells(group.exact_match), *_cells(group.f1))
                 for group in members]
    return table(rows)


def breakdown_json(groups: dict[str, list[Group]]) -> dict[str, Any]:
    """The groups as plain values."""
    return {kind: [asdict(group) for group in members] for kind, members in groups.items()}


def extremes(score: SquadScore, count: int) -> tuple[list[QuestionScore], list[QuestionScore]]:
    """The `count` worst and best answered questions: by F1, then exact match, then in the order of the data."""
    worst = sorted(score.per_question, key=lambda question: (question.f1, question.em))
    best = sorted(score.per_question, key=lambda question: (-question.f1, -question.em))
    return worst[:count], best[:count]


def _groups(items: Sequence[Item], score: SquadScore, kind_of: Callable[[Item], str], order: Sequence[str],
            seed: int) -> list[Group]:
    members: dict[str, list[int]] = {name: [] for name in order}
    for index, item in enumerate(items):
        members[kind_of(item)].append(index)
    return [Group(name, len(found), *(_percent(score, field, found, seed) for field in ("em", "f1")))
            for name, found in members.items() if found]


def _percent(score: SquadScore, field: str, members: Sequence[int], seed: int) -> Estimate:
    values = [100 * getattr(score.per_question[index], field) for index in members]
    return mean_interval(values, score.units.part(members), scale=(0, 100), seed=seed)


def _bins(ends: Sequence[int]) -> list[str]:
    starts = [0 if ends[0] > 1 else 1, *(end + 1 for end in ends[:-1])]
    return [*(f"{start}" if start == end else f"{start}–{end}" for start, end in zip(starts, ends)), f"{ends[-1] + 1}+"]


def _bin(value: int, ends: Sequence[int]) -> str:
    return _bins(ends)[bisect.bisect_left(ends, value)]


def _length(text: str) -> int:
    """The number of words: between spaces, or of Chinese and Japanese the characters."""
    return count_words(text) if is_chinese([text]) else len(text.split())


def _place(item: Item) -> str:
    if not item.references:
        return NONE
    return UNKNOWN if item.start < 0 else _FIFTHS[5 * item.start // len(item.context)]


def _cells(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.mean:.2f}", f"[{estimate.low:.2f}, {estimate.high:.2f}]"
