"""Atomic writes: a reader finds either the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import IO, Any, Iterator

from jittor_lora.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` and rename it over `path` when the block ends without an exception.

    The file is flushed to the disk before the rename, and the folder after it. Missing parent folders are made.
    Text is UTF-8 with `\\n` line ends.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def make_writable(folder: str | os.PathLike) -> None:
    """Make `folder` if it is missing and see whether it can be written, before long work whose result goes there.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from error


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; NaN and infinity are refused by `json` (ValueError)."""
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def _not_writable(path: str | os.PathLike, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}). "
                     "Free space on the disk or name a folder that can be written.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
