"""Reads what one side of an alignment left: another process' files, or those of a user's own script.

Values are checked strictly, but for NaN and infinity, which the comparison reports; all that is wrong is reported at
once.
"""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, Mapping, TypeVar

import numpy as np

from jittor_lora.alignment import record as names
from jittor_lora.alignment.record import Facts, Record, StepRecord
from jittor_lora.errors import UserError, some_of_each
from jittor_lora.evaluation.predictions import read_predictions
from jittor_lora.files.untrusted import read_input, unique_keys
from jittor_lora.formats.adapter_check import check_effort, open_weights, read_config, show
from jittor_lora.formats.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from jittor_lora.formats.hugging_face import read_json
from jittor_lora.formats.peft import adapter_arrays
from jittor_lora.formats.peft_config import config_of
from jittor_lora.formats.safetensors_file import SafetensorsFile
from jittor_lora.formats.tensor_file import FLOAT_TYPES

STEP_COLUMNS = tuple(field.name for field in fields(StepRecord))
LARGEST_TABLE = 64 << 20  # bytes
LOSS = "loss"  # in first_step.safetensors
_WHOLE = ("step", "labels", "tokens")
_T = TypeVar("_T")


def read_record(folder: str | os.PathLike) -> Record:
    """
    Raises:
        UserError: files are missing or hold something else; all are listed.
    """
    folder, problems = Path(folder), []
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Run `jittor-lora align` again, or name the folder of one side.")

    def read(name: str, reader: Callable[[Path], _T]) -> _T | None:
        if not os.path.lexists(folder / name):
            problems.append(f"{name}: is missing")
            return None
        try:
            return reader(folder / name)
        except UserError as error:
            problems.append(str(error).replace(f"{folder}{os.sep}", "", 1))
            return None

    facts, base, steps = read(names.FACTS, _facts), read(names.BASE, _base), read(names.STEPS, read_steps)
    first_step, held_out = read(names.FIRST_STEP, _first_step), read(names.HELD_OUT, _held_out)
    initial, adapter = read(names.INITIAL_ADAPTER, _adapter), read(names.ADAPTER, _adapter)
    answers = read(names.ANSWERS, read_predictions)
    if problems:
        raise UserError("\n  ".join([f"{folder}: not the whole record of a training:", *problems])
                        + f"\nIf the side was interrupted, its {names.LOG} says why; run it again.")
    loss, arrays = first_step
    return Record(facts, base, steps, arrays, loss, *initial, *adapter, held_out, answers)


def read_steps(path: Path) -> tuple[StepRecord, ...]:
    """The lines of a steps.csv.

    Raises:
        UserError: other columns, or values that are no numbers of this kind; all are listed.
    """
    try:
        text = read_input(path, LARGEST_TABLE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text; found byte 0x{error.object[error.start]:02x}.") from error
    try:
        head, *rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row] or [[]]
    except csv.Error as error:
        raise UserError(f"{path}: expected comma-separated values; found something else ({error}).") from error
    missing = [name for name in STEP_COLUMNS if name not in head]
    if missing:
        raise UserError(f"{path}: expected the columns {', '.join(STEP_COLUMNS)}; missing: {', '.join(missing)}.")
    at, steps, wrong = [head.index(name) for name in STEP_COLUMNS], [], []
    for number, row in enumerate(rows, 1):
        try:
            step = StepRecord(*(_number(name, row[place]) for name, place in zip(STEP_COLUMNS, at)))
        except (ValueError, IndexError):
            wrong.append(f"step {number}: {show(','.join(row))}")
            continue
        if step.step != number or min(step.labels, step.tokens) < 0 or not 0 <= step.seconds < math.inf:
            wrong.append(f"step {number}: {show(','.join(row))}")
        steps.append(step)
    if wrong:
        raise UserError("\n  ".join([f"{path}: expected the steps from 1 on, each with numbers in all columns; found:",
                                     *some_of_each(wrong)]))
    if not steps:
        raise UserError(f"{path}: has no steps.")
    return tuple(steps)


def _number(column: str, text: str) -> float:
    return int(text) if column in _WHOLE else float(text)


def _facts(path: Path) -> Facts:
    values, wrong = read_json(path, unique_keys(show)), []
    checks = {"framework": _is_text, "versions": _is_texts, "machine": _is_texts,
              "settings": lambda value: isinstance(value, dict), "training_seconds": _is_size, "peak_bytes": _is_size}
    for key, check in checks.items():
        if not check(values.get(key)):
            wrong.append(f"{key}: {show(values.get(key))}")
    if wrong:
        raise UserError("\n  ".join([f"{path}: expected texts, objects of texts, and numbers from 0; found:", *wrong]))
    return Facts(*(values[key] for key in checks))


def _base(path: Path) -> dict[str, tuple[tuple[int, ...], float, float]]:
    values, found, wrong = read_json(path, unique_keys(show)), {}, []
    for name, value in values.items():
        value = value if isinstance(value, dict) else {}
        shape, total, norm = value.get("shape"), value.get("sum"), value.get("norm")
        if not (isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
                and type(total) in (int, float) and type(norm) in (int, float)):
            wrong.append(f"{name}: {show(values[name])}")
            continue
        found[name] = tuple(shape), float(total), float(norm)
    if wrong:
        raise UserError("\n  ".join([f"{path}: expected shape, sum and norm of each tensor; found:",
                                     *some_of_each(wrong)]))
    return found


def _first_step(path: Path) -> tuple[float, dict[str, np.ndarray]]:
    arrays = _arrays(path)
    loss = arrays.pop(LOSS, None)
    if loss is None or loss.size != 1:
        raise UserError(f"{path}: {LOSS}: expected one number; found "
                        f"{'no such array' if loss is None else f'shape {loss.shape}'}.")
    return float(loss.reshape(())), arrays


def _held_out(path: Path) -> tuple[np.ndarray, ...]:
    arrays = _arrays(path)
    expected = [str(number) for number in range(len(arrays))]
    if sorted(arrays) != sorted(expected) or any(array.ndim != 2 for array in arrays.values()):
        raise UserError(f"{path}: expected matrices named 0, 1, …; found "
                        f"{', '.join(f'{show(name)} {array.shape}' for name, array in list(arrays.items())[:8])}.")
    return tuple(arrays[name] for name in expected)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(path)
    wrong = [f"{show(name)}: {entry.dtype}" for name, entry in file.entries.items() if entry.dtype not in FLOAT_TYPES]
    if wrong:
        expected = ", ".join(FLOAT_TYPES)
        raise UserError("\n  ".join([f"{path}: expected one of {expected}; found:", *some_of_each(wrong)]))
    return dict(file)


def _adapter(folder: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, float]]:
    """Arrays and scalings. That A and B fit each other is left to the comparison, which says how they do not."""
    settings = read_config(folder / CONFIG_FILE)
    arrays = adapter_arrays(open_weights(folder / WEIGHTS_FILE, numbers=False))
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in arrays if ".lora_" in name))
    check_effort(folder / CONFIG_FILE, settings, modules)
    config = config_of(folder / CONFIG_FILE, settings)
    return arrays, {module: config.scaling_of(module) for module in modules}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_size(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf
