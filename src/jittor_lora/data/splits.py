"""Finds the files of a split among those of a data set, by the usual names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from jittor_lora.errors import UserError

EXTENSIONS = (".parquet", ".jsonl", ".json", ".csv", ".tsv")  # of one split in several formats the first is taken
_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "config.json", "state.json",
                 "metadata.json")
_DEV = ("validation", "dev", "valid", "val", "eval")
_PART = re.compile(r"(.*?)[-_.]?(\d+)-of-(\d+)")
_SHOWN = 12


class Chosen(NamedTuple):
    """Files of one split.

    Attributes:
        shown: their common name for messages: organisation/name/data/train-*-of-00002.parquet.
        files: their paths in the data set, in order.
    """

    shown: str
    files: list[str]


class _Group(NamedTuple):
    """The parts of one table: files that differ only in their number, or all of a folder named after a split."""

    folder: str
    name: str
    extension: str


def choose_files(files: Sequence[str], repository: str, inner: str | None, named: str | None, split: str) -> Chosen:
    """The files of a split.

    Args:
        files: all paths in the data set.
        repository: `organisation/name`, for messages.
        inner: the path of a file, or of a folder to search.
        named: the split as the user named it, if so.
        split: "train" or "dev" otherwise.

    Raises:
        UserError: there are none, not all parts, or several tables that fit.
    """
    if inner in files:
        return Chosen(f"{repository}/{inner}", [inner])
    data = [file for file in files if _is_data(file) and (inner is None or file.startswith(f"{inner}/"))]
    if inner is not None and not data:
        near = difflib.get_close_matches(inner, files, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"hub:{repository}/{inner}: no such file or folder{meant} {_listed(files)}")
    wanted = named or split
    words = _DEV if wanted in _DEV else (wanted,)
    groups: dict[_Group, list[str]] = {}
    for file in data:
        groups.setdefault(_group(file, words), []).append(file)
    fitting = [group for group in groups if {group.name, PurePosixPath(group.folder).name} & set(words)] or [
        group for group in groups if set(words) & set(re.split(r"[^a-z0-9]+", f"{group.folder}/{group.name}".lower()))]
    if not fitting and wanted == "train" and len(groups) == 1:
        fitting = list(groups)
    fitting.sort(key=lambda group: EXTENSIONS.index(group.extension))
    place = f"hub:{repository}" + (f"/{inner}" if inner else "")
    if not fitting:
        raise UserError(f"{place}: no data file of the split {wanted}. {_listed(data)}\nName a split "
                        f"(hub:{repository}:test) or a file (hub:{repository}/{data[0] if data else 'FILE'}).")
    if len({group[:2] for group in fitting}) > 1:
        names = ", ".join(f"hub:{repository}/{groups[group][0]}" for group in fitting[:_SHOWN])
        raise UserError(f"{place}: several files fit the split {wanted}. Name one, its folder, or another split: "
                        f"{names}")
    return _whole(fitting[0], sorted(groups[fitting[0]]), repository)


def _whole(group: _Group, parts: list[str], repository: str) -> Chosen:
    """The parts of a group.

    Raises:
        UserError: some of them are missing, as in a cache.
    """
    numbered = _PART.fullmatch(PurePosixPath(parts[0]).stem)
    if numbered and len(parts) != int(numbered[3]):
        raise UserError(f"hub:{repository}: expected {int(numbered[3]):,} parts like {parts[0]}; found {len(parts):,}.")
    if len(parts) == 1:
        return Chosen(f"{repository}/{parts[0]}", parts)
    before = f"{repository}/{group.folder}/" if group.folder != "." else f"{repository}/"
    name = f"{numbered[1]}-*-of-{numbered[3]}" if numbered else "*"
    return Chosen(f"{before}{name}{group.extension}", parts)


def _group(file: str, words: Sequence[str]) -> _Group:
    path = PurePosixPath(file)
    numbered = _PART.fullmatch(path.stem)
    name = "*" if path.parent.name in words else numbered[1] if numbered else path.stem
    return _Group(str(path.parent), name, path.suffix)


def _is_data(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix in EXTENSIONS and path.name not in _DESCRIPTIONS and not file.startswith(".")


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"Its files: {', '.join(files[:_SHOWN]) or 'none'}{more}."
