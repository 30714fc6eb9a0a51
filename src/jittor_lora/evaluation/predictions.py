"""Prediction files in SQuAD's official format, and files of scores per question."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.evaluation.scoring import SquadScore
from jittor_lora.files.atomic import atomic_write, write_json
from jittor_lora.files.untrusted import load_json, read_input

_SHOWN_OFFENDERS = 10


def write_predictions(path: str | os.PathLike, predictions: Mapping[str, str]) -> None:
    """Write question id -> answer text as one JSON object, atomically."""
    write_json(path, dict(predictions))


def read_predictions(path: str | os.PathLike) -> dict[str, str]:
    """Read question id -> answer text.

    Raises:
        UserError: not a UTF-8 JSON object of strings, or an id occurs twice; all offenders are named.
    """
    path = Path(path)
    offenders: list[str] = []
    outermost: list[tuple[str, object]] = []

    def keep_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
        outermost[:] = pairs  # the outermost object closes last
        return dict(pairs)

    value = read_json(path, "one object with question ids and answer texts", object_pairs_hook=keep_pairs)
    if not isinstance(value, dict):
        raise UserError(f'{path}: expected one JSON object {{"question id": "answer text", …}}, found '
                        f"{_kind(value)}. Write predictions in SQuAD's official format.")
    seen = set()
    for question, text in outermost:
        if question in seen:
            offenders.append(f"{question!r}: occurs more than once")
        seen.add(question)
        if not isinstance(text, str):
            offenders.append(f"{question!r}: expected a text, found {_kind(text)}")
        elif _has_surrogates(text) or _has_surrogates(question):
            offenders.append(f"{question!r}: contains half a UTF-16 surrogate pair, which is not a character")
    if offenders:
        more = len(offenders) - _SHOWN_OFFENDERS
        raise UserError("\n  ".join([f"{path}: {len(offenders)} of {len(outermost)} predictions cannot be used:",
                                     *offenders[:_SHOWN_OFFENDERS], *([f"and {more} more"] if more > 0 else [])])
                        + "\nGive each question id once, with its answer as a JSON string.")
    return value


def write_question_scores(path: str | os.PathLike, score: SquadScore,
                          references: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write JSON Lines, one question per line, atomically: id, prediction (null if missing), exact_match and f1 from
    0 to 1, and, if given, its `references` (id -> accepted answers)."""
    with atomic_write(path) as stream:
        for question in score.per_question:
            row = {"id": question.id, "prediction": question.prediction, "exact_match": question.em, "f1": question.f1}
            if references is not None:
                row["references"] = list(references[question.id])
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json(path: Path, expected: str, **options: object) -> object:
    """Parse a UTF-8 JSON file, skipping a byte order mark; `options` go to `load_json`.

    Raises:
        UserError: the file cannot be read or is not JSON; the message names what was `expected`.
    """
    try:
        return load_json(read_input(path).decode("utf-8-sig"), **options)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at position "
                        f"{error.start}. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}). "
                        f"Expected {expected}.") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}. Expected {expected}.") from error


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false", int: "a number",
             float: "a number", type(None): "null"}
    return names[type(value)]
