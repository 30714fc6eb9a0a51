"""Finds run folders. Links are not followed: a run is a real folder below the one that the server was given."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from jittor_lora.errors import UserError
from jittor_lora.serving.views.run_notes import Note

MARKS = ("metrics.jsonl", "train_loss.txt", "run.log")  # a folder with one of these holds a run
DEEPEST = 4  # levels of folders below the one searched
MOST_FOLDERS = 10_000
MOST_ENTRIES = 10_000  # of one folder


@dataclass
class FoundRuns:
    """Run folders by name: the path below the folder searched, with what is not UTF-8 as escapes."""

    folders: dict[str, Path] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def find_runs(root: Path) -> FoundRuns:
    """The runs in `root` and below it; not those inside another run, or in hidden folders."""
    found, links, unreadable, searched = FoundRuns(), 0, 0, 0
    level = [root]
    for _ in range(DEEPEST + 1):
        below: list[Path] = []
        for folder in level:
            searched += 1
            if searched > MOST_FOLDERS:
                found.notes.append(Note("folders", count=MOST_FOLDERS))
                break
            try:
                with os.scandir(folder) as entries:
                    listed = [entry for entry, _ in zip(entries, range(MOST_ENTRIES))]
                is_run = any(entry.name in MARKS and entry.is_file(follow_symlinks=False) for entry in listed)
                if is_run:
                    found.folders.setdefault(name_of(folder, root), folder)
                if not is_run or folder == root:
                    below += [Path(entry.path) for entry in listed
                              if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
                    links += sum(entry.is_symlink() and entry.is_dir() for entry in listed)
            except OSError:
                unreadable += 1
        level = sorted(below)
    found.notes += [Note(code, count=count) for code, count in (("links", links), ("unreadable", unreadable)) if count]
    return found


def name_of(folder: Path, root: Path) -> str:
    """By which a run is asked for."""
    relative = folder.relative_to(root).as_posix() if folder != root else root.name or "runs"
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def file_in(run: Path, *names: str) -> Optional[Path]:
    """A file or folder of a run; None if there is none.

    Raises:
        UserError: it is a link, or in a folder that is one.
    """
    path = run
    for name in names:
        path = path / name
        try:
            if stat.S_ISLNK(path.lstat().st_mode):
                raise UserError(f"{path.relative_to(run)}: a link, which may lead out of the folder; it was not read.")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{path.relative_to(run)}: cannot be read ({error.strerror or error}).") from error
    return path


def small_file_in(run: Path, most: int, *names: str) -> Optional[Path]:
    """As `file_in`, for a file that is read whole.

    Raises:
        UserError: also if it is larger than `most` bytes.
    """
    path = file_in(run, *names)
    if path is not None and path.lstat().st_size > most:
        raise UserError(f"{path.relative_to(run)}: larger than {most:,} bytes; it was not read.")
    return path
