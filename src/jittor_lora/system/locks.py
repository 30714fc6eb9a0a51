"""One process at a time in a folder, or at a piece of work."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import make_writable
from jittor_lora.system import job

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # what file systems without flock answer


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other processes that ask for the same out of `folder`, which is made if it is missing.

    The lock (flock on the file `.lock` in it) goes with the process that holds it, however that ends. What was made for
    it is removed, unless something else was put there. Of the ranks of an MPI job the first has it for all.

    Raises:
        UserError: another process is at work there, or the folder cannot be written.
    """
    if job.current().rank:
        yield
        return
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        descriptor = _take(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(folder / LOCK_FILE)
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Wait until no other process is in such a block with the file `path`, which is there as long as one is.

    Args:
        what: is done within, for the word on standard error that one waits.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _wait(descriptor, what)
            if _is_named(descriptor, path):  # else the process before has just removed the file
                try:
                    yield
                finally:
                    os.unlink(path)
                return
        finally:
            os.close(descriptor)


def _wait(descriptor: int, what: str) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what}: waiting for another process that does the same.", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{what}: this file system has no locks; see to it that no other process does the same.", file=sys.stderr)


def _take(folder: Path) -> int:
    while True:
        make_writable(folder)
        try:
            descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(f"{folder / LOCK_FILE}: cannot be opened ({error.strerror or error}). Name a folder that "
                            "can be written.") from error
        try:
            _lock(descriptor, folder)
            if _is_named(descriptor, folder / LOCK_FILE):  # else the holder before has just removed the file
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        raise UserError(f"{folder}: another process is at work in this folder{f' ({holder})' if holder else ''}. "
                        "Wait for its end, end it, or name another folder.") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{folder}: this file system has no locks ({error.strerror}); see to it yourself that nothing else works "
              "in this folder.", file=sys.stderr)
        return
    with contextlib.suppress(OSError):  # a full disk: it only tells others who holds the lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since "
                              f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)


def _is_named(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False
