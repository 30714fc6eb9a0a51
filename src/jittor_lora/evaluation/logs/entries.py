"""Parses the text of a log into entries: the losses of each line, row or object, and their place in the run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jittor_lora.evaluation.logs.names import (
    EPOCH,
    FRACTION,
    PLACES,
    SUMMARY,
    LossName,
    is_loss,
    loss_name,
    part_of,
    place_name,
)
from jittor_lora.evaluation.logs.pairs import NUMBER, Pair, pairs_of_line, pairs_of_object
from jittor_lora.files.untrusted import load_json

UNNAMED = "unnamed numbers"  # the name of losses in a file of bare numbers
# In Trainer's last dictionary, which has this key, train_loss is the mean of the whole run.
_WHOLE_RUN = "train_runtime"
# jt.Var([3.2],dtype=float32), tensor(3.2, device='cuda:0'), [3.2]
_TENSOR = re.compile(rf"(?:[A-Za-z_][\w.]{{0,30}}\s{{0,4}})?[(\[]{{1,8}}\s{{0,4}}({NUMBER.pattern})\s{{0,4}}"
                     r"[)\]]{0,8}\s{0,4}(?:,\s{0,4}[a-z_]{1,30}\s{0,4}=[^\[\]]{0,200})?[)\]]{0,8}", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z_]\w{0,100}|[\u4e00-\u9fff]{1,100}")
_A_NUMBER = re.compile(r"(?<![\w-])\d")  # headings have none; the 1 of "lr-AdamW/pg1" belongs to a name
# A progress bar is redrawn from the start of its line.
_REDRAWN = re.compile(r"[\r\x08]+")


class Place(NamedTuple):
    """Step 20 of 402; `total` is None if not stated."""

    value: float
    total: float | None = None


class Loss(NamedTuple):
    """A loss with its name; `part` of the run according to the name, `context` according to the words before it."""

    name: str
    value: float
    part: str | None = None
    context: str | None = None


class Entry(NamedTuple):
    """The losses of a line, row or object, and its places: "step", "epoch", … (see `names.PLACES`)."""

    line: int
    losses: tuple[Loss, ...]
    places: Mapping[str, Place]


class Entries(NamedTuple):
    """The entries of a log; `skipped` are (number, line) without a loss, apart from blank lines and comments."""

    entries: list[Entry]
    skipped: list[tuple[int, str]]


def entries_of(text: str) -> Entries:
    """Parse a log: a JSON document, a table with a heading, or lines of text, each in whatever format."""
    records = _records(text)
    if records is not None:
        found = [_entry(number, pairs_of_object(record)) for number, record in enumerate(records, 1)]
        return Entries([entry for entry in found if entry.losses], [])
    entries: list[Entry] = []
    skipped: list[tuple[int, str]] = []
    columns: Columns | None = None
    epoch: Place | None = None
    for number, line in enumerate(text.split("\n"), 1):
        found = False
        pieces = [piece for piece in _REDRAWN.split(line) if piece.strip() and not piece.lstrip().startswith("#")]
        for piece in pieces:
            if columns is None and not entries:
                columns = Columns.of(piece)
                if columns is not None:
                    found = True
                    continue
            entry = _read(number, piece, columns)
            if entry.losses:
                found = True
                if epoch is not None and entry.losses[0].name != UNNAMED:
                    entry = entry._replace(places={EPOCH: epoch, **entry.places})
                entries.append(entry)
            else:
                epoch = entry.places.get(EPOCH, epoch)
        if pieces and not found:
            skipped.append((number, line.strip()))
    return Entries(entries, skipped)


class Columns(NamedTuple):
    """The words of a table's column names, and the divider between columns; None stands for blanks."""

    words: tuple[tuple[str, ...], ...]
    divider: str | None

    @classmethod
    def of(cls, line: str) -> Columns | None:
        """The columns, if `line` is a heading that names a loss, or the step and value of a TensorBoard export."""
        if _A_NUMBER.search(line):
            return None
        for divider in (",", "\t", ";", "|", None):
            names = tuple(cls._cells(line, divider))
            words = [tuple(name.split()) for name in names]
            if len(names) == 1 and divider is not None:
                continue
            if any(loss_name(one) and len(one) < 5 and not set("=:") & set(name) for one, name in zip(words, names)) \
                    and (divider is not None or len(names) == 1 or any(map(place_name, words))):
                return cls(cls._words_of(names), divider)
            if {"step", "value"} <= {name.lower() for name in names}:
                return cls(cls._words_of("loss" if name.lower() == "value" else name for name in names), divider)
        return None

    @staticmethod
    def _words_of(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(_WORDS.findall(name[:200])) for name in names)

    def pairs(self, line: str) -> list[Pair] | None:
        """The numbers of a row; None if its columns differ in number."""
        cells = self._cells(line, self.divider)
        if len(cells) != len(self.words):
            return None
        context = next((found for found in map(part_of, cells) if found), None)
        return [Pair(words, float(cell), None, context) for words, cell in zip(self.words, cells)
                if NUMBER.fullmatch(cell)]

    @staticmethod
    def _cells(line: str, divider: str | None) -> list[str]:
        if divider == "|":
            line = line.strip().removeprefix("|").removesuffix("|")
        cells = line.split(divider)
        return [cell.strip().strip("\"'").strip() for cell in cells]


def _read(number: int, line: str, columns: Columns | None) -> Entry:
    if columns is not None:
        pairs = columns.pairs(line)
        if pairs:
            return _entry(number, pairs)
    line = line.strip()
    bare = _bare_numbers(line)
    if bare is not None:
        placed = len(bare) > 1 and _in_range(bare[0])
        return Entry(number, (Loss(UNNAMED, bare[-1]),), {"step": Place(bare[0])} if placed else {})
    record = _object_in(line)
    return _entry(number, pairs_of_line(line) if record is None else pairs_of_object(record))


def _bare_numbers(line: str) -> list[float] | None:
    """The numbers of "3.2", "10,3.2" or a printed tensor; None for any other line."""
    if len(line) > 300:
        return None
    cells = [cell.strip() for cell in (line.split(",") if "," in line else line.split())]
    if len(cells) <= 2 and all(NUMBER.fullmatch(cell) for cell in cells):
        return [float(cell) for cell in cells]
    tensor = _TENSOR.fullmatch(line)
    return [float(tensor[1])] if tensor else None


def _object_in(line: str) -> Mapping[str, Any] | None:
    """The JSON object that a line ends with."""
    start = line.find("{")
    if start < 0 or not line.endswith("}"):
        return None
    try:
        value = load_json(line[start:])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _entry(line: int, pairs: Sequence[Pair]) -> Entry:
    places: dict[str, Place] = {}
    losses: list[Loss] = []
    whole_run = any(pair.words and pair.words[-1].lower() == _WHOLE_RUN for pair in pairs)
    for pair in pairs:
        words = pair.words
        place = place_name(words) if words else FRACTION if pair.total else None
        name = loss_name(words) if place is None else None  # "Loss at step" names a step
        if name is not None and pair.exact:
            if whole_run and name.part != "validation":
                name = LossName(name.name, SUMMARY)
            losses.append(Loss(name.name, pair.value, name.part, pair.context))
            continue
        if place is not None and place not in places and _fits(place, pair.value):
            places[place] = Place(pair.value, pair.total)
    return Entry(line, tuple(losses), places)


def _fits(place: str, value: float) -> bool:
    return _in_range(value) and (place == EPOCH or value == int(value))


def _in_range(place: float) -> bool:
    return 0 <= place < 2**53  # NaN is not


def _records(text: str) -> list[Mapping[str, Any]] | None:
    """The objects of a JSON document: `log_history` of trainer_state.json, a list of objects, or lists of numbers by
    name. None if the text is no such document."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = load_json(text)
    except ValueError:
        return None
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        objects = next((item for item in lists if any(isinstance(one, dict) for one in item)), None)
        if objects is None and any(is_loss((key,)) and isinstance(item, list) for key, item in value.items()):
            return _rows(value)
        value = [value] if objects is None else objects
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, (int, float)) for item in value):
        return [{"loss": item} for item in value]
    return [item for item in value if isinstance(item, dict)] or None


def _rows(columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """{"step": [1, 2], "loss": [3.2, 3.1]} as a list of objects; places apply to lists of their own length only."""
    rows: list[dict[str, Any]] = []
    lists = {key: item for key, item in columns.items() if isinstance(item, list)}
    places = {key: item for key, item in lists.items() if place_name((key,)) in PLACES}
    for key, item in lists.items():
        if key in places:
            continue
        for index, one in enumerate(item):
            row = {key: one}
            row.update({name: place[index] for name, place in places.items() if len(place) == len(item)})
            rows.append(row)
    return rows
