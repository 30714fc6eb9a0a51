"""Scores and answers that an evaluation left in a run's folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from jittor_lora.data.sources import SHIPPED, load_data
from jittor_lora.data.squad import SquadData
from jittor_lora.errors import UserError
from jittor_lora.evaluation.metrics import read_metrics
from jittor_lora.files.untrusted import load_json, open_input
from jittor_lora.serving.api.plain import is_number, shown_text
from jittor_lora.serving.views.run_find import file_in, small_file_in
from jittor_lora.serving.views.run_notes import Note
from jittor_lora.serving.views.run_state import evaluation_folders, noted

LARGEST_METRICS = 1 << 20  # bytes
READ_OF_ANSWERS = 1 << 20  # bytes of each questions.jsonl
MOST_ANSWERS = 50
MOST_REFERENCES = 8
MOST_OTHERS = 20


@dataclass
class OtherScore:
    value: float
    interval: Optional[tuple[float, float]] = None


@dataclass
class Score:
    """EM and F1 in percent with their intervals, see `evaluation.metrics.Metrics`.

    Attributes:
        name: of the folder: usually "base" or "adapter".
        others: by name, such as BLEU or perplexity.
    """

    name: str
    exact_match: float
    f1: float
    exact_match_interval: tuple[float, float]
    f1_interval: tuple[float, float]
    count: int
    unit: str
    units: int
    scoring: str
    others: dict[str, OtherScore] = field(default_factory=dict)


@dataclass
class RunAnswer:
    """The answers to one question.

    Attributes:
        question: None if its text is not known here: a run has only its id.
        answers: by the name of their scores; None for no prediction.
        f1: of them, from 0 to 1.
    """

    id: str
    question: Optional[str]
    references: list[str]
    answers: dict[str, Optional[str]]
    f1: dict[str, float]


@dataclass
class RunResults:
    scores: list[Score] = field(default_factory=list)
    answers: list[RunAnswer] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def read_results(run: Path) -> RunResults:
    """The scores in `evaluation`, and the first answers to the questions."""
    found = RunResults()
    rows: dict[str, dict[str, Any]] = {}  # name of the scores → question's id → row
    for folder in sorted(evaluation_folders(run, found.notes), key=lambda path: (path.name != "base", path)):
        inside = folder.relative_to(run).parts
        name, shown = folder.name.encode("utf-8", "backslashreplace").decode(), "/".join(inside)
        score = noted(found.notes, run, f"{shown}/metrics.json", lambda inside=inside, name=name:
                      _score(run, name, inside))
        if score is not None:
            found.scores.append(score)
        answers = noted(found.notes, run, f"{shown}/questions.jsonl", lambda inside=inside: _rows(run, inside))
        if answers:
            rows[name] = answers
    found.answers = _answers(rows)
    return found


def _score(run: Path, name: str, inside: tuple[str, ...]) -> Optional[Score]:
    path = small_file_in(run, LARGEST_METRICS, *inside, "metrics.json")
    if path is None:
        return None
    metrics, others = read_metrics(path), {}
    values = load_json(path.read_bytes())
    texts = values.get("text_scores")
    for key, value in list(texts.items())[:MOST_OTHERS] if isinstance(texts, dict) else ():
        if isinstance(value, dict) and is_number(value.get("value")):
            interval = value.get("interval")
            known = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
            others[str(shown_text(key))] = OtherScore(value["value"], tuple(interval) if known else None)
    if is_number(values.get("answer_perplexity")):
        others["perplexity"] = OtherScore(values["answer_perplexity"])
    return Score(name, metrics.exact_match, metrics.f1, metrics.exact_match_interval, metrics.f1_interval,
                 metrics.count, metrics.unit, metrics.units, metrics.scoring, others)


def _rows(run: Path, inside: tuple[str, ...]) -> dict[str, Any]:
    """The first rows of questions.jsonl by question."""
    path = file_in(run, *inside, "questions.jsonl")
    if path is None:
        return {}
    with open_input(path) as stream:
        lines = stream.read(READ_OF_ANSWERS).split(b"\n")[:-1]
    rows = {}
    for line in lines[:MOST_ANSWERS]:
        try:
            row = load_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            rows[row["id"]] = row
    return rows


def _answers(rows: dict[str, dict[str, Any]]) -> list[RunAnswer]:
    answers = []
    for name in list(dict.fromkeys(name for own in rows.values() for name in own))[:MOST_ANSWERS]:
        having = {system: own[name] for system, own in rows.items() if name in own}
        references = next((row["references"] for row in having.values() if isinstance(row.get("references"), list)), [])
        texts = [shown_text(text) for text in dict.fromkeys(text for text in references if isinstance(text, str))]
        answers.append(RunAnswer(shown_text(name), _questions().get(name), texts[:MOST_REFERENCES],
                                 {system: shown_text(row.get("prediction")) for system, row in having.items()},
                                 {system: row["f1"] for system, row in having.items() if is_number(row.get("f1"))}))
    return answers


@lru_cache(maxsize=1)
def _questions() -> dict[str, str]:
    """The shipped questions by id."""
    try:
        data = load_data(str(SHIPPED["sample-dev"]), "dev")
    except UserError:  # not installed
        return {}
    return {question.id: question.text for paragraph in data.paragraphs for question in paragraph.questions} \
        if isinstance(data, SquadData) else {}
