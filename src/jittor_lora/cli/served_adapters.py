"""The adapters that `--adapter [NAME=]PATH` names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_files import CONFIG_FILE, may_be_adapter

INSIDE = "adapter"  # of a run folder


def named_adapters(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """(name, folder of the adapter's files) of each.

    A path is that of an adapter, of a run folder, or of a folder that holds such folders. The name is by default the
    folder's; that of the run for the adapter in a run folder.

    Raises:
        UserError: there is no adapter, or two have the same name; all are listed.
    """
    found: list[tuple[str, Path]] = []
    wrong = []
    for text in texts:
        name, path = _parts(text)
        folders = _adapters(path)
        if not folders:
            wrong.append(f"--adapter {text}: expected an adapter folder, with {CONFIG_FILE}, the run folder of train, "
                         "or a folder of such folders; found "
                         f"{'none in it' if path.is_dir() else 'no such folder'}.")
        elif name and len(folders) > 1:
            wrong.append(f"--adapter {text}: expected one adapter to call {name}; found {len(folders)} in that folder. "
                         "Name one of them, or leave the name out.")
        elif name == "":
            wrong.append(f"--adapter {text}: expected a name before the =; found none.")
        else:
            found += [(name or _name(folder), folder) for folder in folders]
    counts = Counter(name for name, _ in found)
    for name in (name for name, count in counts.items() if count > 1):
        same = ", ".join(str(folder) for other, folder in found if other == name)
        wrong.append(f"--adapter: {counts[name]} adapters are called {name}: {same}. Name them: --adapter NAME=PATH.")
    if wrong:
        raise UserError("\n".join(wrong))
    return found


def _parts(text: str) -> tuple[str | None, Path]:
    """Name, None if there is none, and path; a = may be part of an existing path."""
    if "=" in text and not Path(text).exists():
        name, _, path = text.partition("=")
        return name, Path(path)
    return None, Path(text)


def _adapters(path: Path) -> list[Path]:
    own = _adapter(path)
    if own is not None or not path.is_dir():
        return [] if own is None else [own]
    return [found for child in sorted(path.iterdir()) for found in [_adapter(child)] if found is not None]


def _adapter(path: Path) -> Path | None:
    return next((folder for folder in (path, path / INSIDE) if may_be_adapter(folder)), None)


def _name(folder: Path) -> str:
    folder = folder.absolute()
    return folder.stem if folder.is_file() else (folder.parent if folder.name == INSIDE else folder).name
