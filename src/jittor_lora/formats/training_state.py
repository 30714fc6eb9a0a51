"""A training checkpoint: one safetensors file with the adapter, the optimiser's moments and the state of the run.

Its header contains the version of this format, everything that is not an array as JSON, and the SHA-256 sum of the
whole file, computed with 64 zeros in place of the sum itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import IO, Any, Iterator, Mapping, NamedTuple

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write
from jittor_lora.files.finite import not_finite
from jittor_lora.files.untrusted import load_json, open_input, unreadable
from jittor_lora.formats.safetensors_file import SafetensorsFile, write_safetensors

VERSION = 3
FILE_NAME = re.compile(r"step-(\d{8})\.safetensors")
NO_SUM = "0" * 64
_BLOCK = 1 << 20


class TrainingState(NamedTuple):
    """All that is needed to resume a run exactly.

    Attributes:
        arrays: name → float32 array: "adapter.<name>", "initial.<name>" (see `Adapter.initial`), "first.<name>",
            "second.<name>".
        values: plain JSON: the step, the best validation loss, the settings that must not change.
    """

    arrays: Mapping[str, np.ndarray]
    values: dict[str, Any]


class Copies(Mapping[str, np.ndarray]):
    """Jittor or NumPy arrays by name, as NumPy arrays: each is copied on access, never all at once."""

    def __init__(self, arrays: Mapping[str, Any]):
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        return array if isinstance(array, np.ndarray) else array.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def write_state(folder: Path, step: int, state: TrainingState, keep: int) -> Path:
    """Write the checkpoint of `step` into `folder` and remove all up to it except the newest `keep`.

    Later checkpoints do not count: they can only be damaged ones that `newest_state` skipped.

    Raises:
        UserError: arrays are not finite, or the folder cannot be written; its files are then unchanged.
    """
    path = folder / f"step-{step:08d}.safetensors"
    metadata = {"jittor_lora_state": str(VERSION), "sha256": NO_SUM, "values": json.dumps(state.values)}
    with atomic_write(path, "w+b") as stream:
        write_safetensors(stream, state.arrays, {name: a.shape for name, a in state.arrays.items()}, metadata, path)
        start, found = _sum(stream, NO_SUM)
        stream.seek(start)
        stream.write(found.encode())
    for old in [old for at, old in checkpoints(folder) if at <= step][:-keep]:
        old.unlink()
    return path


def read_state(path: Path) -> TrainingState:
    """Read a checkpoint.

    Raises:
        UserError: the file is damaged, of another kind or version, or has numbers that are not finite.
    """
    file = SafetensorsFile(path)
    version = file.metadata.get("jittor_lora_state")
    if version != str(VERSION):
        raise UserError(f"{path}: expected a training checkpoint of version {VERSION}, found version {version}.")
    expected = file.metadata.get("sha256", "")
    try:
        with open_input(path) as stream:
            _, found = _sum(stream, expected)
    except OSError as error:
        raise unreadable(path, error) from error
    if found != expected:
        raise UserError(f"{path}: damaged: expected SHA-256 {expected}, found {found}.")
    try:
        values = load_json(file.metadata.get("values", "null"))
    except ValueError as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a training checkpoint with values, found {str(values)[:80]}.")
    arrays = {name: np.array(array) for name, array in file.items()}
    wrong = not_finite(arrays)
    if wrong:
        name, what = next(iter(wrong.items()))
        raise UserError(f"{path}: numbers that are not finite in {len(wrong)} arrays, the first {name} ({what}).")
    return TrainingState(arrays, values)


def _sum(stream: IO[bytes], known: str) -> tuple[int, str]:
    """The position of the sum `known` in the file, and the sum of the file with zeros there."""
    stream.seek(0)
    length = stream.read(8)
    header = length + stream.read(int.from_bytes(length, "little"))
    mark, zeros = (f'"sha256":"{text}"'.encode("ascii", "replace") for text in (known, NO_SUM))
    digest = hashlib.sha256(header.replace(mark, zeros, 1))
    for block in iter(lambda: stream.read(_BLOCK), b""):
        digest.update(block)
    return header.find(mark) + len('"sha256":"'), digest.hexdigest()


def newest_state(folder: Path) -> tuple[Path, TrainingState, list[str]] | None:
    """The newest readable checkpoint of a run, with the reasons why newer ones were skipped; None if there are none.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    skipped = []
    for _, path in reversed(checkpoints(folder)):
        try:
            return path, read_state(path), skipped
        except UserError as error:
            skipped.append(str(error))
    if skipped:
        raise UserError("No checkpoint can be read:\n  " + "\n  ".join(skipped))
    return None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint file in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(FILE_NAME.fullmatch(path.name), path) for path in folder.iterdir() if not path.is_dir()]
    return sorted((int(match.group(1)), path) for match, path in found if match)
