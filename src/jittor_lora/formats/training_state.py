"""A training checkpoint: one safetensors file with the adapter, the optimiser's moments and where the run stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files import atomic_write
from jittor_lora.formats.safetensors_file import SafetensorsFile, write_safetensors

VERSION = 2
FILE_NAME = re.compile(r"step-(\d{8})\.safetensors")


class TrainingState(NamedTuple):
    """What a run needs to go on exactly.

    Attributes:
        arrays: name → float32 array: "adapter.<name>", "initial.<name>" (see `Adapter.initial`), "first.<name>",
            "second.<name>".
        values: plain JSON: the step, the best validation loss, the settings that must not change.
    """

    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


def write_state(folder: Path, step: int, state: TrainingState, keep: int) -> Path:
    """Write the checkpoint of `step` into `folder` and remove all up to it but the newest `keep`.

    A later one can only be damaged, passed over by `newest_state`; it does not count.
    """
    path = folder / f"step-{step:08d}.safetensors"
    metadata = {"jittor_lora_state": str(VERSION), "values": json.dumps(state.values)}
    with atomic_write(path, "wb") as stream:
        write_safetensors(stream, state.arrays, {name: a.shape for name, a in state.arrays.items()}, metadata)
    for old in [old for at, old in checkpoints(folder) if at <= step][:-keep]:
        old.unlink()
    return path


def read_state(path: Path) -> TrainingState:
    """
    Raises:
        UserError: the file is damaged, or of another kind or version.
    """
    file = SafetensorsFile(path)
    version = file.metadata.get("jittor_lora_state")
    try:
        values = json.loads(file.metadata.get("values", "null"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}).") from error
    if version != str(VERSION) or not isinstance(values, dict):
        raise UserError(f"{path}: expected a training checkpoint of version {VERSION}, found version {version}.")
    return TrainingState({name: np.array(array) for name, array in file.items()}, values)


def newest_state(folder: Path) -> tuple[Path, TrainingState, list[str]] | None:
    """The newest readable checkpoint of a run, with why newer ones were passed over; None if there is none at all.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    passed = []
    for _, path in reversed(checkpoints(folder)):
        try:
            return path, read_state(path), passed
        except UserError as error:
            passed.append(str(error))
    if passed:
        raise UserError("No checkpoint can be read:\n  " + "\n  ".join(passed))
    return None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(FILE_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in found if match)
