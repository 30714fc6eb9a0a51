"""Which base model an adapter or a run belongs to: `base_model.json`, our own file beside PEFT's two.

PEFT records only a name, and a name such as `./gpt2` means a different model, or none, in another folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import write_json
from jittor_lora.formats.adapter_files import RECORD_FILE
from jittor_lora.formats.adapter_source import AdapterSource, open_adapter
from jittor_lora.formats.bases import AUTO, ResolvedBase, WantedBase, is_model
from jittor_lora.formats.record_file import Field, read_record_file
from jittor_lora.settings.text import home_expanded

if TYPE_CHECKING:
    from jittor_lora.ops.blocks import Blocks

LARGEST_RECORD = 64 << 10  # bytes
LONGEST_TEXT = 4096  # characters
QUANTISED = ("bf16", "q8", "q4")  # base precisions that change weights
_SAMPLES = 1024  # values of each tensor


@dataclass(frozen=True)
class BaseRecord:
    """
    Attributes:
        name: the name that the user gave.
        fingerprint: of its weights, see `Fingerprint`.
        path: where it was, relative to the record's folder; None if it came from a hub or an index.
        precision: the base precision if its weights were quantised for it: "bf16", "q8" or "q4"; the fingerprint is
            that of the weights before.
    """

    name: str
    fingerprint: str
    path: str | None = None
    precision: str | None = None

    @classmethod
    def of(cls, base: ResolvedBase, fingerprint: str, folder: Path, precision: str = "auto") -> BaseRecord:
        """The record to be written in `folder`."""
        path = os.path.relpath(os.path.realpath(base.path), os.path.realpath(folder)) if base.local else None
        return cls(base.name, fingerprint, path, None if precision == "auto" else precision)

    def moved(self, old: Path, new: Path) -> BaseRecord:
        """The record with its path, relative to the folder `old`, made relative to the folder `new`."""
        if self.path is None:
            return self
        base = os.path.join(os.path.realpath(old), self.path)
        return replace(self, path=os.path.relpath(base, os.path.realpath(new)))

    def write(self, folder: Path) -> None:
        """Write `base_model.json` in `folder`, atomically."""
        write_json(folder / RECORD_FILE, asdict(self))


class Fingerprint:
    """A fingerprint of a base's weights, from up to 1,024 evenly spaced float32 values per tensor.

    It tells different models apart, also a fine-tuned one from its original, without reading everything. The same
    weights in other files (shards, bf16 stored as float32) have the same fingerprint.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, bytes] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        """Include a tensor; adding it again changes nothing."""
        if name not in self._tensors:
            self._note(name, array.shape, array.reshape(-1)[:: max(1, array.size // _SAMPLES)][:_SAMPLES])

    def add_stored(self, name: str, blocks: Blocks, transposed: bool) -> None:
        """As `add`, of a matrix in blocks, of which few rows are decoded. `transposed`: the tensor is (in, out)."""
        if name not in self._tensors:
            shape = blocks.shape[::-1] if transposed else blocks.shape
            size = shape[0] * shape[1]
            first, second = np.divmod(np.arange(0, size, max(1, size // _SAMPLES))[:_SAMPLES], shape[1])
            rows, columns = (second, first) if transposed else (first, second)
            wanted, places = np.unique(rows, return_inverse=True)
            self._note(name, shape, blocks.rows(wanted)[places, columns])

    def _note(self, name: str, shape: tuple[int, ...], samples: np.ndarray) -> None:
        self._tensors[name] = hashlib.sha256(repr(shape).encode() + samples.astype("<f4").tobytes()).digest()

    def hexdigest(self) -> str:
        digest = hashlib.sha256()
        for name in sorted(self._tensors):
            digest.update(name.encode() + b"\0" + self._tensors[name])
        return digest.hexdigest()


def read_record(folder: Path) -> BaseRecord | None:
    """The record in `folder`; None if there is none.

    Raises:
        UserError: the file is not a valid record.
    """
    values = read_record_file(folder / RECORD_FILE, _FIELDS, LARGEST_RECORD,
                              "Remove the file to identify the base by name only.")
    return None if values is None else BaseRecord(values["name"], values["fingerprint"], values.get("path"),
                                                  values.get("precision"))


def base_of_adapter(adapter: Path | AdapterSource) -> WantedBase:
    """The base that an adapter is for.

    Raises:
        UserError: the adapter does not name its base, or the base is no longer where it was.
    """
    adapter = open_adapter(adapter)
    name = adapter.settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{adapter.config_path}: base_model_name_or_path does not name a base; give --base.")
    return find_base(adapter.folder, name, f"the adapter {adapter.folder}")


def find_base(folder: Path, name: str, owner: str) -> WantedBase:
    """The base that was called `name` when `owner` was created; its record, if any, is in `folder`.

    Searched are the record's path relative to `folder`, then the current folder, then `folder`.

    Raises:
        UserError: there is no such folder or file; the message lists the places searched.
    """
    record = read_record(folder)
    fingerprint = record.fingerprint if record else None
    if record is not None and name not in (record.name, AUTO):
        record = None  # the name has changed since
    if record is not None:
        name = record.name
    if record is not None and record.path is None:
        return WantedBase(name, None, owner, fingerprint)
    expanded = home_expanded(name)
    candidates = [*([Path(folder, record.path)] if record else []), Path(expanded), Path(folder, expanded)]
    found = next((path for path in candidates if is_model(path)), None)
    if found is None and (record is not None or _is_path(name)):
        searched = dict.fromkeys(os.path.normpath(path) for path in candidates)
        raise UserError(f"{owner}: its base, {name}, was not found. Looked for a model at {', '.join(searched)}. "
                        "Give its location with --base.")
    return WantedBase(name, None if found is None else str(found), owner, fingerprint)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and "\0" not in value


def _is_path_or_none(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{64}", value))


_FIELDS = (Field("name", "a text", _is_text), Field("fingerprint", "64 hexadecimal digits", _is_fingerprint),
           Field("path", "a path or null", _is_path_or_none),
           Field("precision", f"one of {', '.join(QUANTISED)}, or null", lambda value: value in (None, *QUANTISED)))
