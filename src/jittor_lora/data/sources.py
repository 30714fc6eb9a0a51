"""Resolves `--data`: a file, the official SQuAD files, or a shipped sample."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from jittor_lora.data.download import RemoteFile, fetch
from jittor_lora.data.e2e import is_e2e, parse_e2e
from jittor_lora.data.examples import Data
from jittor_lora.data.jsonl import parse_jsonl
from jittor_lora.data.records import first_value, records
from jittor_lora.data.squad import is_flat, parse_flat, parse_squad
from jittor_lora.data.text_file import Offenders, read_text
from jittor_lora.errors import UserError, not_installed

SAMPLE = Path(__file__).parent / "sample"
OFFICIAL = {
    "squad-train": RemoteFile(
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/train-v1.1.json",
        30_288_272,
        "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    ),
    "squad-dev": RemoteFile(
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json",
        4_854_279,
        "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    ),
}
SHIPPED = {
    "sample-train": SAMPLE / "squad-v1.1-sample-train.json",
    "sample-dev": SAMPLE / "squad-v1.1-sample-dev.json",
    "e2e-train": SAMPLE / "e2e-train-part.txt",
    "e2e-dev": SAMPLE / "e2e-dev-part.txt",
}
SETS = ("squad", "sample", "e2e")
NAMES = (*OFFICIAL, *SHIPPED, *SETS)


def default_cache() -> Path:
    """The cache of the official files."""
    return Path.home() / ".cache" / "jittor-lora" / "data"


def resolve_data(name: str, split: str = "train", cache: Path | None = None) -> Path:
    """The file that a name stands for; an official file is downloaded on first use.

    Args:
        name: a path, which takes precedence, or one of `NAMES`; `split` selects the part of `squad`, `sample`, `e2e`.
        split: "train" or "dev".
        cache: folder of the official files; by default `default_cache()`.

    Raises:
        UserError: no such file or name (with the nearest), or the download failed.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = f"{name}-{split}" if name in SETS else name
    if known in SHIPPED:
        if not SHIPPED[known].exists():
            raise not_installed(name)
        return SHIPPED[known]
    if known in OFFICIAL:
        remote, target = OFFICIAL[known], (cache or default_cache()) / OFFICIAL[known].url.rsplit("/", 1)[1]
        return fetch(
            remote, target, f"Place the file at {target} by hand, or use the shipped sample: --data sample-{split}."
        )
    if path.is_dir():
        raise UserError(f"{name}: a folder, expected a file. Name the data file itself.")
    raise UserError(f"{name}: no such file or data set{_nearest(path)} Data sets: {', '.join(NAMES)}.")


def load_data(name: str, split: str = "train", purpose: str = "training", cache: Path | None = None) -> Data:
    """Read the data that a name stands for: SQuAD JSON, JSON Lines or E2E's lines, told apart by content.

    Args:
        name, split, cache: see `resolve_data`.
        purpose: "training", "evaluation" or "prompts"; see `read_squad`.

    Raises:
        UserError: no such data, or the file is malformed.
    """
    path = resolve_data(name, split, cache)
    text = read_text(path)
    if is_e2e(text):
        return parse_e2e(text, path, purpose)
    if is_squad(text, path):
        return parse_squad(text, path, purpose)
    first = next((value for _, value in records(text, Offenders(path))), None)
    return (parse_flat if is_flat(first) else parse_jsonl)(text, path, purpose)


def is_squad(text: str, path: str | os.PathLike) -> bool:
    """Whether a text is SQuAD JSON, which starts with an object that has "data"; otherwise it is records.

    Raises:
        UserError: neither, because it does not start like JSON.
    """
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        raise UserError(
            f"{path}: expected SQuAD v1.1 JSON, JSON Lines with prompt and completion, or E2E's lines with ||, found "
            f"text that starts with {start[:40]!r}."
        )
    # The usual cases are decided without parsing a large file twice.
    if re.match(r'\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"data"', start):
        return True
    if re.match(r'\[|\{\s*"(prompt|completion|id)"', start):
        return False
    found = first_value(start)
    return found is None or isinstance(found[0], dict) and "data" in found[0]


def _nearest(path: Path) -> str:
    """The nearest name, or the nearest file in the folder of the path."""
    names = {name: name for name in NAMES}
    try:
        names.update((entry.name, str(path.with_name(entry.name))) for entry in path.parent.iterdir())
    except OSError:
        pass
    found = difflib.get_close_matches(path.name, list(names), n=1)
    return f"; did you mean {names[found[0]]}?" if found else "."
