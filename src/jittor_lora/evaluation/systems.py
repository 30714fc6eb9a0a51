"""Reads the answers of several systems to the same questions from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jittor_lora.data.examples import Data
from jittor_lora.errors import UserError
from jittor_lora.evaluation.predictions import read_json, read_predictions
from jittor_lora.evaluation.scoring import SquadScore, score
from jittor_lora.settings import recipe

PREDICTIONS, METRICS, SETTINGS = "predictions.json", "metrics.json", "config.yaml"
SMOOTHING = "label smoothing taken out"
_RUN_LOGS = ("metrics.jsonl", "train_loss.txt")
_ANSWER_SETTINGS = {"candidates": "candidates", "span_temperature": "span temperature", "label_smoothing": SMOOTHING,
                    "no_answer_threshold": "no-answer threshold"}


@dataclass(frozen=True)
class System:
    """A system with its scores.

    Attributes:
        settings: how its answers were generated, by name.
        run: the folder of the training run it came from, if known.
        perplexity: of the reference answers under the model, if measured.
    """

    name: str
    score: SquadScore
    settings: Mapping[str, object] = field(default_factory=dict)
    run: Path | None = None
    perplexity: float | None = None


def named_folders(argument: str) -> list[tuple[str, Path]]:
    """(name, prediction file) of `[NAME=]PATH`: a prediction file, a folder with one, or a run folder with evaluations.

    Raises:
        UserError: there are no predictions.
    """
    name, path = _named(argument)
    if path.is_file():
        return [(name or (path.resolve().parent.name if path.name == PREDICTIONS else path.stem), path)]
    found = [path] if (path / PREDICTIONS).is_file() else []
    evaluations = [file.parent for file in path.glob(f"evaluation/*/{PREDICTIONS}")]
    found += sorted(evaluations, key=lambda folder: (folder.name != "base", folder.name))
    if not found:
        what = "found a folder with none of them" if path.is_dir() else "nothing exists there"
        raise UserError(f"{path}: expected a prediction file, a folder with {PREDICTIONS}, or a run folder with "
                        f"evaluation/*/{PREDICTIONS}; {what}.")
    if len(found) == 1:
        return [(name or found[0].resolve().name, found[0] / PREDICTIONS)]
    return [(f"{name or path.resolve().name} {folder.name}", folder / PREDICTIONS) for folder in found]


def is_named(argument: str) -> bool:
    """Does `[NAME=]PATH` have a name?"""
    return bool(_named(argument)[0])


def numbered(given: Sequence[tuple[str, Path, bool]]) -> tuple[list[tuple[str, Path]], dict[str, list[str]]]:
    """Systems with different names, and the groups of those that were given the same name, which are several runs of
    one system.

    Args:
        given: (name, path, was the name given?) of each; equal names that were not given stay equal.

    Returns: (name, path) of each, with numbers from 1 where a name was given several times: "r8 1", "r8 2"; and for
        each of these names what it became.
    """
    names = [name for name, _, was_given in given if was_given]
    groups: dict[str, list[str]] = {name: [] for name in names if names.count(name) > 1}
    found = []
    for name, path, was_given in given:
        if was_given and name in groups:
            groups[name].append(f"{name} {len(groups[name]) + 1}")
            name = groups[name][-1]
        found.append((name, path))
    return found, groups


def read_system(name: str, path: Path, data: Data, scoring: str = "squad") -> System:
    """The system whose predictions are in the file `path`, scored by a rule whatever the rule was when it answered.

    Args:
        scoring: the rule, see `scoring.RULES`.

    Raises:
        UserError: the file cannot be used, or answers none of the questions.
    """
    predictions, references = read_predictions(path), data.references()
    if not references.keys() & predictions.keys():
        raise UserError(f"{path}: answers none of the {len(references)} questions of the data. Name the data that it "
                        "was generated from.")
    measured, run = _measured(path.parent), run_of(path)
    perplexity = measured.get("answer_perplexity")
    return System(name, score(references, predictions, data.places(), scoring),
                  {"predictions": str(path), **answer_settings(path.parent), **run_settings(run)}, run,
                  perplexity if isinstance(perplexity, float) else None)


def answer_settings(folder: Path) -> dict[str, Any]:
    """How the answers in a folder were chosen, according to the metrics.json beside them; empty without one.

    Raises:
        UserError: the file cannot be used.
    """
    measured = _measured(folder)
    return {shown: measured[name] for name, shown in _ANSWER_SETTINGS.items()
            if type(measured.get(name)) in (int, float)}


def _measured(folder: Path) -> dict[str, Any]:
    """What the metrics.json in a folder of answers says; empty without one."""
    found = read_json(folder / METRICS, "the metrics of an evaluation") if (folder / METRICS).is_file() else {}
    return found if isinstance(found, dict) else {}


def only_answered(systems: Sequence[System], data: Data) -> tuple[list[System], Data]:
    """The systems, rescored on the questions that at least one of them answered, and these questions."""
    predictions = [{question.id: question.prediction for question in system.score.per_question
                    if question.prediction is not None} for system in systems]
    data = data.only({question for answered in predictions for question in answered})
    references, places = data.references(), data.places()
    return [replace(system, score=score(references, answered, places, system.score.scoring))
            for system, answered in zip(systems, predictions)], data


def run_of(path: str | os.PathLike) -> Path | None:
    """The run folder that contains a file or folder, at most three levels up."""
    path = Path(path).resolve()
    return next((folder for folder in (path, *path.parents[:3])
                 if any((folder / name).is_file() for name in _RUN_LOGS)), None)


def run_settings(run: Path | None) -> dict[str, Any]:
    """The settings of a training run, for display; empty without a config.yaml.

    Raises:
        UserError: the file cannot be used.
    """
    path = run / SETTINGS if run else None
    if path is None or not path.is_file():
        return {}
    return {f"training: {name}": value for name, value in recipe.read(path)[0].items() if value is not None}


def _named(argument: str) -> tuple[str, Path]:
    """(name or "", path). Names and paths may contain "=" too: the first "=" followed by an existing path divides."""
    if not Path(argument).exists():
        for index, character in enumerate(argument):
            if character == "=" and index and Path(argument[index + 1:]).exists():
                return argument[:index], Path(argument[index + 1:])
    return "", Path(argument)
