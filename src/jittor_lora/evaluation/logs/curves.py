"""Picks the training curve and the validation curve from the losses of a log; the rest is left out and counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.evaluation.logs.axis import ORDER, Point, axis_of
from jittor_lora.evaluation.logs.encoding import decode
from jittor_lora.evaluation.logs.entries import UNNAMED, Entry, entries_of
from jittor_lora.evaluation.logs.names import SUMMARY, TEST, TRAIN, VALIDATION, is_plain
from jittor_lora.evaluation.logs.series import LossSeries
from jittor_lora.files.untrusted import read_input

_SHOWN = 10
FORMS = ("Known formats: one number per line; columns with a heading that names the loss; lines such as `Step 10, "
         "Loss: 3.21` or `{\"step\": 10, \"loss\": 3.21}`; the logs of Trainer, Lightning and others.")


class Log(NamedTuple):
    """The curves of a log on one axis: `unit` as in `axis.Axis`; `notes` say what was left out or assumed.

    `unnamed` is set if no loss is marked as training: then `train` may hold validation losses."""

    train: LossSeries | None
    validation: LossSeries | None
    unit: str
    unnamed: bool
    notes: tuple[str, ...]


def read_log(path: Path, wanted: str = TRAIN) -> Log:
    """The losses of a log in any of the usual formats.

    Lines without a loss are skipped. Of several losses, the most frequent is drawn, a plain "loss" before others;
    validation losses are a separate curve.

    Args:
        wanted: TRAIN or VALIDATION, the required curve; losses marked as neither serve as either.

    Raises:
        UserError: the file cannot be read, or has no such losses; the message says what it has.
    """
    decoded = decode(read_input(path))
    entries, skipped = entries_of(decoded.text)
    lines = len(skipped) + len({entry.line for entry in entries})
    series = _series(entries, lines)
    train = _chosen(series, (None, TRAIN))
    validation = _chosen(series, (VALIDATION, TEST))
    if not (train if wanted == TRAIN else validation or (train and train[0] is None)):
        raise UserError(_refusal(path, wanted, series, skipped, decoded.note))
    axis = axis_of(entries, series[train] if train else [], series[validation] if validation else [])
    left_out = [f"{len(values):,} of {_title(key)}" for key, values in series.items() if key not in (train, validation)]
    notes = [decoded.note] if decoded.note else []
    if skipped:
        notes.append(f"{len(skipped):,} of {lines:,} lines have no loss and were skipped")
    if left_out:
        drawn = " and ".join(_title(key) for key in (train, validation) if key is not None)
        notes.append(f"drawn: {drawn}; other losses are left out: {', '.join(left_out[:_SHOWN])}"
                     + (", …" if len(left_out) > _SHOWN else ""))
    notes += axis.notes
    return Log(_finite(path, axis.train, axis.unit, notes), _finite(path, axis.validation, axis.unit, notes), axis.unit,
               train is not None and train[0] is None, tuple(f"{path}: {note}" for note in notes))


_Key = tuple  # (part of the run or None, name)


def _series(entries: Sequence[Entry], lines: int) -> dict[_Key, list[tuple[int, float]]]:
    """(index of the entry, loss) by part of the run and name."""
    contexts = {loss.context for entry in entries for loss in entry.losses if loss.part is None}
    found: dict[_Key, list[tuple[int, float]]] = {}
    for number, entry in enumerate(entries):
        for loss in entry.losses:
            # "test" before every loss is the name of a program or run.
            context = None if loss.part is not None or contexts == {TEST} else loss.context
            found.setdefault((loss.part or context, loss.name), []).append((number, loss.value))
    unnamed = found.get((None, UNNAMED))
    if unnamed is not None and len(found) > 1 and 2 * len(unnamed) <= lines:
        del found[None, UNNAMED]  # stray numbers in a text, not losses
    return found


def _chosen(series: dict[_Key, list], parts: Sequence[str | None]) -> _Key | None:
    """The most frequent losses of these parts; ties go to plain ones, then to the shortest name.

    None if there are none, or if several that are not plain tie, such as a generator's and a discriminator's."""
    ranked = sorted((-len(values), key[0] == TEST, not is_plain(key[1]), len(key[1]), key[1], key[0] is None, key)
                    for key, values in series.items() if key[0] in parts)
    stands_out = ranked and (len(ranked) == 1 or not ranked[0][2] or ranked[0][:3] != ranked[1][:3])
    return ranked[0][-1] if stands_out else None


def _finite(path: Path, points: Sequence[Point], unit: str, notes: list[str]) -> LossSeries | None:
    if not points:
        return None
    at, losses = (np.array([getattr(point, name) for point in points], np.float64) for name in ("at", "loss"))
    finite = np.isfinite(losses)
    if not finite.any():
        raise UserError(f"{path}: expected losses, found only losses that are not finite ({len(losses)}).")
    if not finite.all():
        notes.append(f"{int((~finite).sum())} of {len(losses)} losses are not finite (NaN or infinite) and are left "
                     "out")
    return LossSeries(at[finite], losses[finite], unit != ORDER)


def _title(key: _Key) -> str:
    part, name = key
    if part is None or (part != SUMMARY and part in name):
        return f"`{name}`"
    return f"`{name}` ({'of the whole run' if part == SUMMARY else 'training' if part == TRAIN else part})"


def _refusal(path: Path, wanted: str, series: dict[_Key, list], skipped: Sequence[tuple[int, str]],
             encoding: str) -> str:
    what = "training" if wanted == TRAIN else "validation"
    if series:
        seen = ", ".join(f"{len(values):,} of {_title(key)}" for key, values in series.items())
        if sum(part in ((None, TRAIN) if wanted == TRAIN else (VALIDATION, TEST)) for part, _ in series) > 1:
            return f"{path}: expected one main {what} loss, found {seen}. Keep the lines of only one of them."
        return (f"{path}: expected {what} losses, found {seen}. Name another log"
                + (", or give this one with --val-loss." if wanted == TRAIN else "."))
    if not skipped:
        return f"{path}: expected losses, found no line with a number. {FORMS}"
    shown = [f"line {number}: {line[:80]!r}" for number, line in skipped[:_SHOWN]]
    more = len(skipped) - len(shown)
    return "\n  ".join([f"{path}: no loss recognised in any of its {len(skipped):,} lines"
                        + (f" ({encoding}):" if encoding else ":"), *shown, *([f"and {more:,} more"] if more else [])]
                       ) + f"\n{FORMS}"
