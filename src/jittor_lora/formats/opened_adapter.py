"""Another program's adapter, opened: its settings are checked, its weights not yet read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.formats.adapter_check import LARGEST_NUMBER, LONGEST_NAME, LONGEST_TEXT, show
from jittor_lora.formats.low_rank import LowRank
from jittor_lora.formats.tensor_file import FLOAT_TYPES, TensorFile
from jittor_lora.lora.config import MAX_RANK
from jittor_lora.model.config import ModelConfig


class OpenedAdapter(NamedTuple):
    """
    Attributes:
        config_path, weights_path: its files, which may be one.
        base: name of the base model, if the settings tell it.
        read: reads the weights, given the base's sizes, None if these are not known.
    """

    config_path: Path
    weights_path: Path
    base: Optional[str]
    read: Callable[[Optional[ModelConfig]], LowRank]


def is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= LARGEST_NUMBER


def is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def wrong_settings(fields: Iterable[tuple[str, Any, Callable[[Any], bool], str]]) -> list[str]:
    """A line for each (name, value, check, what is expected) whose value fails the check."""
    return [f"{name}: expected {expected}, found {show(value)}" for name, value, good, expected in fields
            if not good(value)]


def name_or_none(value: Any) -> Optional[str]:
    """A base's name, None if the value cannot be one."""
    good = isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable()
    return value if good else None


def needs_base(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}. Give the base with --base, or `jittor-lora adapter convert {path} FOLDER --base "
                     "B` once: the adapter it writes needs none.")


def wrong_tensors(file: TensorFile, name: re.Pattern, example: str, dimensions: Sequence[int] = (2,)) -> Iterator[str]:
    """Lines about tensors whose names do not match, or that are no arrays of float numbers of 1 or more elements."""
    for key, entry in file.entries.items():
        if len(key) > LONGEST_NAME or not name.fullmatch(key):
            yield f"{show(key)}: expected a name such as {example}"
        elif entry.dtype not in FLOAT_TYPES or len(entry.shape) not in dimensions or 0 in entry.shape:
            yield f"{key}: expected a matrix of {', '.join(FLOAT_TYPES)}, found {entry.dtype} of shape {entry.shape}"


def wrong_pair(pair: Mapping[str, np.ndarray], a: str, b: str, rank: int) -> str | None:
    """What is wrong with the A (r, in) and B (out, r) of a module, which are called `a` and `b` in the file."""
    if not {"A", "B"} <= pair.keys():
        return f"expected {a} and {b}, found {a if 'A' in pair else b} alone" if pair.keys() & {"A", "B"} else (
            f"expected {a} and {b}, found neither")
    found = len(pair["A"]), pair["B"].shape[1]
    return None if found == (rank, rank) else (
        f"expected rank {rank} as in the settings, found {found[0]} in {a} and {found[1]} in {b}")


def refuse(path: Path, *wrong: list[str]) -> None:
    """
    Raises:
        UserError: there are offenders.
    """
    if any(wrong):
        raise UserError("\n  ".join([f"{path}:", *some_of_each(*wrong)]))
