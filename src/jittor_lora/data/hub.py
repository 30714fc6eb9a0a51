"""Data sets of the Hugging Face Hub: `hub:organisation/name`, with the path of a file or folder, or with a split.

The library reads its own settings: HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_HOME and HF_TOKEN.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jittor_lora.data.splits import choose_files
from jittor_lora.errors import UserError
from jittor_lora.files.hub_access import Unavailable, answered, reason
from jittor_lora.files.untrusted import LARGEST

HUB = "hub:"
SECONDS = 20.0  # time limit for a first answer
_NAME = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:/([^:]+?))?/?(?::([\w.-]+))?")
_ALTERNATIVES = """Alternatives:
  - a mirror of the Hub: set HF_ENDPOINT to its address and run again;
  - the file itself, downloaded in a browser or on another machine: --data FILE."""


def cached(repository: str) -> Path | None:
    """The folder of a data set in the Hub's local cache, None if it has none. Never uses the network."""
    import huggingface_hub  # here, because it is slow to import and most commands do without

    try:
        return Path(huggingface_hub.snapshot_download(repository, repo_type="dataset", local_files_only=True))
    except Exception:  # the exception for an absent data set differs between versions
        return None


def listing(repository: str) -> dict[str, int | None]:
    """The files of a data set, with their sizes in bytes where the Hub says them.

    Raises:
        Unavailable: no answer, or no such data set.
    """
    import huggingface_hub

    info = answered(lambda: huggingface_hub.HfApi().dataset_info(repository, timeout=SECONDS, files_metadata=True),
                    SECONDS)
    return {str(file.rfilename): file.size for file in info.siblings or ()}


def download(repository: str, file: str) -> Path:
    """Fetch one file into the Hub's cache, with a progress bar.

    Raises:
        Unavailable: it cannot be fetched.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, repo_type="dataset"))
    except Exception as error:  # the library's, its HTTP client's and the socket's
        raise Unavailable(reason(error)) from error


@dataclass(frozen=True)
class Hub:
    """The ways to a data set; tests substitute their own."""

    cached: Callable[[str], Path | None] = cached
    listing: Callable[[str], Mapping[str, int | None]] = listing
    download: Callable[[str, str], Path] = download


def hub_files(name: str, split: str, hub: Hub = Hub()) -> tuple[str, list[Path]]:
    """The files of a data set on this machine, fetched unless they are in the cache, and their name for messages.

    Args:
        name: `organisation/name`, then optionally `/path` of a file or folder in it, and `:split`.
        split: "train" or "dev", for a name without a split.

    Raises:
        UserError: not such a name, the Hub cannot be reached, or it has no such files, or several that fit.
    """
    parts = _NAME.fullmatch(name)
    if not parts:
        raise UserError(f"{HUB}{name}: expected {HUB}organisation/name, {HUB}organisation/name:split or "
                        f"{HUB}organisation/name/path/of/file.jsonl.")
    repository, inner, named = parts.groups()
    folder = hub.cached(repository)
    if folder is not None:
        try:
            chosen = choose_files(_files_in(folder), repository, inner, named, split)
        except UserError:  # what is wanted may be on the Hub
            pass
        else:
            return HUB + chosen.shown, [folder / file for file in chosen.files]
    try:
        sizes = hub.listing(repository)
        chosen = choose_files(list(sizes), repository, inner, named, split)
        total = sum(sizes[file] or 0 for file in chosen.files)
        if total > LARGEST:
            raise UserError(f"{HUB}{chosen.shown}: expected at most {LARGEST:,} bytes; found {total:,}. Name one of "
                            f"its files: {', '.join(f'{HUB}{repository}/{file}' for file in chosen.files[:3])}")
        print(f"Fetching {HUB}{chosen.shown} ({total:,} bytes), once …", file=sys.stderr, flush=True)
        return HUB + chosen.shown, [hub.download(repository, file) for file in chosen.files]
    except Unavailable as error:
        raise UserError(f"{HUB}{name}: not available from the Hugging Face Hub: {error}.\n{_ALTERNATIVES}") from error


def _files_in(folder: Path) -> list[str]:
    return sorted(Path(place, file).relative_to(folder).as_posix() for place, _, files in os.walk(folder)
                  for file in files if os.path.isfile(Path(place, file)))
