"""The adapters that may be loaded while the server runs: those in the folders that the command line allows.

What a request calls a path is looked up among these, and never opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jittor_lora.errors import some_of_each
from jittor_lora.formats.adapter_files import may_be_adapter
from jittor_lora.formats.adapter_source import AdapterSource, open_adapter
from jittor_lora.serving.api.openai_errors import ApiError

DEEPEST = 3  # folders below an allowed one
MOST = 10_000  # folders looked at
RUN_ADAPTER = "adapter"  # of a run folder, which stands for it


class Listing:
    """The adapters in and below some folders, looked for anew at each call; links to folders are not followed."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = tuple(folders)

    def paths(self) -> list[Path]:
        """Folders of adapters, sorted."""
        return sorted({found for folder in self.folders for found in _below(folder)})

    def find(self, text: str) -> AdapterSource:
        """The adapter that a request calls `text`: its path, absolute or as on the command line, or its path within an
        allowed folder; that of a run folder too.

        Raises:
            ApiError: none is called so, or several.
            UserError: its settings cannot be read.
        """
        paths = self.paths()
        found = [path for path in paths if text.rstrip("/") in self._names(path)]
        if len(found) == 1:
            return open_adapter(found[0])
        listed = ", ".join(some_of_each([min(self._names(path), key=len) for path in paths], most=10)) or "none"
        if found:
            raise ApiError(400, f"lora_path: {len(found)} adapters are called so. Give the whole path.", "lora_path")
        raise ApiError(404, "lora_path: expected an adapter in the folders that the server was started with; there is "
                            f"{listed}.", "lora_path")

    def _names(self, path: Path) -> set[str]:
        names = set()
        for known in (path, path.parent) if path.name == RUN_ADAPTER else (path,):
            names |= {str(known), os.path.abspath(known)}
            names |= {str(known.relative_to(folder)) for folder in self.folders if folder in known.parents}
        return names


def _below(folder: Path) -> Iterator[Path]:
    for number, (path, folders, _) in enumerate(os.walk(folder)):
        folders.sort()
        if number >= MOST or len(Path(path).relative_to(folder).parts) >= DEEPEST:
            folders.clear()
        if may_be_adapter(Path(path)):
            yield Path(path)
