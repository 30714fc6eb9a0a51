"""A reader's input as files, or as other things in place of files."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Union


@dataclass(frozen=True)
class Odd:
    """Something in place of a file: "fifo", "folder", "link" (to `target`), or "sparse" (of `size` bytes)."""

    kind: str
    target: str = ""
    size: int = 0


Files = dict[str, Union[bytes, Odd]]


def lay(files: Files, folder: Path) -> None:
    """Recreate `folder` with these files in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content.kind == "fifo":
            os.mkfifo(path)
        elif content.kind == "folder":
            path.mkdir()
        elif content.kind == "link":
            path.symlink_to(content.target)
        else:
            with open(path, "wb") as stream:
                stream.truncate(content.size)


def save(files: Files, folder: Path, told: str) -> None:
    """Save a case with its outcome; sparse files and pipes are only named."""
    ordinary = {name: content for name, content in files.items() if isinstance(content, bytes)}
    lay(ordinary, folder)
    odd = [f"{name}: {content}" for name, content in files.items() if isinstance(content, Odd)]
    (folder / "FINDING.txt").write_text("\n".join([*odd, told]) + "\n", encoding="utf-8", errors="backslashreplace")
