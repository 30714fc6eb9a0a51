"""Atomic writes: a reader finds either the old file or the complete new one, even after a power cut."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any, Iterator

from jittor_lora.errors import UserError

# What `atomic_write` and `written_together` leave when their process is killed.
_LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` and rename it over `path` when the block ends without an exception.

    The file is flushed to disk before the rename, and the folder after it. Missing parent folders are created and
    flushed too. Text is UTF-8 with `\\n` line endings.

    Raises:
        UserError: the folder cannot be created or written, or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    temporary = None
    try:
        make_folder(path.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
        sync(path.parent)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def written_together(folder: str | os.PathLike, last: str) -> Iterator[Path]:
    """A staging folder for files that belong together; when the block ends they move to `folder`, `last` last.

    A reader that finds `last` finds the others as written with it: an old `last` that differs is removed before
    anything else changes. Other files in `folder` stay.

    Args:
        last: name of the file by which the others are found; it must be written.

    Raises:
        UserError: the folder cannot be written, or the disk is full; the files in `folder` are then untouched.
    """
    folder, stage = Path(folder), None
    try:
        make_folder(folder)
        stage = Path(tempfile.mkdtemp(prefix=f".{last}.", suffix=".tmp", dir=folder))
        with _errors_name(folder, stage):
            yield stage
        old, new = folder / last, stage / last
        if old.is_file() and old.read_bytes() != new.read_bytes():
            old.unlink()
            sync(folder)
        for path in sorted(stage.iterdir(), key=lambda path: (path.name == last, path.name)):
            os.replace(path, folder / path.name)
        sync(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A staging folder beside `folder`, which must be new or empty; it is renamed to `folder` when the block ends.

    What a killed process left of it (`.….unfinished`) is removed first.

    Raises:
        UserError: another process is writing this folder, or it cannot be written, or the disk is full.
    """
    named, folder = folder, Path(os.path.realpath(folder))
    if os.path.ismount(folder):
        raise UserError(f"{named}: is a mount point, which cannot be replaced atomically. Name a folder in it.")
    stage = folder.with_name(f".{folder.name}.unfinished")
    try:
        make_folder(folder.parent)
        stage.mkdir(exist_ok=True)
        descriptor = os.open(stage, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"{named}: another process is writing it. Wait for it to end, or name another folder."
                            ) from None
        try:
            for leftover in stage.iterdir():
                _remove(leftover)
            with _errors_name(named, stage):
                yield stage
            sync(stage)
            os.rename(stage, folder)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)
        sync(folder.parent)
    except OSError as error:
        raise _not_writable(named, error) from error


def remove_leftovers(*folders: Path) -> None:
    """Remove what killed writers left in these folders, which no other process may be writing to.

    Raises:
        UserError: something cannot be removed.
    """
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if not _LEFTOVER.fullmatch(path.name):
                continue
            try:
                _remove(path)
            except OSError as error:
                raise _not_writable(path, error) from error


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, durably: they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def make_writable(folder: str | os.PathLike) -> None:
    """Create `folder` if it is missing and check that it is writable, before long work whose result goes there.

    Raises:
        UserError: it cannot be created or written.
    """
    try:
        make_folder(Path(folder))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from error


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; NaN and infinity are refused by `json` (ValueError)."""
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 sum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force the content of a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _errors_name(folder: str | os.PathLike, stage: Path) -> Iterator[None]:
    """Makes errors name the final folder instead of the staging folder."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(stage), str(folder))) from error


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _not_writable(path: str | os.PathLike, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}). "
                     "Free space on the disk or name a writable folder.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
