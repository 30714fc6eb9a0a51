"""Resolves `--data`: a file, official files of SQuAD, WebNLG and DART, a shipped sample, or a data set on the Hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jittor_lora.data.columns import Columns
from jittor_lora.data.download import RemoteFile, fetch
from jittor_lora.data.examples import Data
from jittor_lora.data.formats import read_rows, read_text_format
from jittor_lora.data.hub import HUB, hub_files
from jittor_lora.data.parquet import Parquet, is_parquet
from jittor_lora.data.rows import Rows, known_fields, text_reader
from jittor_lora.data.text_file import read_text
from jittor_lora.errors import UserError, not_installed

SAMPLE = Path(__file__).parent / "sample"
# The data of the LoRA paper's GPT-2 tasks, in its repository.
_LORA = "https://raw.githubusercontent.com/microsoft/LoRA/3732c24dba0559fe4393bfc8f295b83947a2c5e0/examples/NLG/data"
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
    "webnlg-dev": RemoteFile(
        f"{_LORA}/webnlg_challenge_2017/dev.json",
        2_596_106,
        "50f5a2c24d760bc84ba3e852707cd3b43b0cf2da035b425f87945a2440880488",
        "webnlg-2017-dev.json",
    ),
    # Sizes and checksums as in datasets/dart/dataset_infos.json of huggingface/datasets.
    "dart-train": RemoteFile(
        f"{_LORA}/dart/dart-v1.1.1-full-train.json",
        22_001_131,
        "0671b56f4b090ccf1c0187364d45c6f1214421d6f1081a21800596860f314e70",
    ),
    "dart-dev": RemoteFile(
        f"{_LORA}/dart/dart-v1.1.1-full-dev.json",
        2_370_637,
        "5038f3543b6d59b94ac4e3f69d15a0b01d8578913f862142e7c560200dd6e434",
    ),
    "dart-test": RemoteFile(
        f"{_LORA}/dart/dart-v1.1.1-full-test.json",
        5_001_020,
        "c772553b482dd5fc7b8ad90d68889062a2603e28d4449ee1f162006819e0565e",
    ),
}
# No checksum of these is known, so that they are not downloaded: name -> where a user finds them.
UNVERIFIED = {f"webnlg-{part}": f"{_LORA}/webnlg_challenge_2017/{part}.json" for part in ("train", "test")}
SHIPPED = {
    "sample-train": SAMPLE / "squad-v1.1-sample-train.json",
    "sample-dev": SAMPLE / "squad-v1.1-sample-dev.json",
    "e2e-train": SAMPLE / "e2e-train-part.txt",
    "e2e-dev": SAMPLE / "e2e-dev-part.txt",
}
SETS = ("squad", "sample", "e2e", "webnlg", "dart")
NAMES = (*OFFICIAL, *SHIPPED, *SETS)


def default_cache() -> Path:
    """The cache of the official files."""
    return Path.home() / ".cache" / "jittor-lora" / "data"


def resolve_data(name: str, split: str = "train", cache: Path | None = None) -> Path:
    """The file that a name stands for; an official file is downloaded on first use.

    Args:
        name: a path, which takes precedence, or one of `NAMES`; `split` selects the part of those in `SETS`.
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
        remote, target = OFFICIAL[known], (cache or default_cache()) / OFFICIAL[known].file_name
        sample = f", or use the shipped sample: --data sample-{split}" if known.startswith("squad") else ""
        return fetch(remote, target, f"Place the file at {target} by hand{sample}.")
    if known in UNVERIFIED:
        raise UserError(f"{name}: not downloaded, as no checksum is known to verify it with. Get the file from "
                        f"{UNVERIFIED[known]} and name its path: --data {known}.json")
    if path.is_dir():
        raise UserError(f"{name}: a folder, expected a file. Name the data file itself.")
    raise UserError(f"{name}: no such file or data set{_nearest(path)} Data sets: {', '.join(NAMES)}.")


def load_data(name: str, split: str = "train", purpose: str = "training", cache: Path | None = None,
              columns: Mapping[str, str] | None = None) -> Data:
    """Read the data that a name stands for; the format is recognised by content (see `data/formats.py`).

    Args:
        name, split, cache: see `find_data`.
        purpose: "training", "evaluation" or "prompts"; see `read_squad` and `read_conversations`.
        columns: our names -> the file's fields, see `data/columns.py`.

    Raises:
        UserError: no such data, or the file is malformed.
    """
    shown, paths = find_data(name, split, cache)
    return read_files(paths, shown, purpose, Columns(columns))


def find_data(name: str, split: str = "train", cache: Path | None = None) -> tuple[str, list[Path]]:
    """The files that a name stands for, several for a data set of the Hub in parts, and their name for messages.

    Args:
        name, split, cache: see `resolve_data`; also `hub:organisation/name`, see `data/hub.py`.

    Raises:
        UserError: no such file or data set, or the download failed.
    """
    if name.startswith(HUB) and not os.path.isfile(name):
        return hub_files(name[len(HUB):], split)
    path = resolve_data(name, split, cache)
    return str(path), [path]


def read_files(paths: Sequence[Path], shown: str, purpose: str, columns: Columns) -> Data:
    """Read a file, or several parts of one data set.

    Args:
        shown: their name in messages.

    Raises:
        UserError: they are malformed, or of no known format.
    """
    readers = []
    for path in paths:
        if is_parquet(path):
            readers.append(Parquet(path, shown, known_fields(columns)))
            continue
        text = read_text(path)
        data = read_text_format(text, shown, purpose, columns) if len(paths) == 1 else None
        if data is not None:
            return data
        readers.append(text_reader(text, shown, columns))
    return read_rows(Rows(shown, readers, columns), purpose, columns)


def _nearest(path: Path) -> str:
    """The nearest name, or the nearest file in the folder of the path."""
    names = {name: name for name in NAMES}
    try:
        names.update((entry.name, str(path.with_name(entry.name))) for entry in path.parent.iterdir())
    except OSError:
        pass
    found = difflib.get_close_matches(path.name, list(names), n=1)
    return f"; did you mean {names[found[0]]}?" if found else "."
