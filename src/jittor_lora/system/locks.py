"""Locks: one process at a time in a folder, or in a block."""

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
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # errors of file systems without flock


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock `folder`, which is created if missing, against other processes that call this.

    The lock (flock on the file `.lock` in it) is released when its process ends, however that happens. Folders created
    for it are removed again if they are empty. In an MPI job the first rank holds it for all.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """
    if job.current().rank:
        yield
        return
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        descriptor = _acquire(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(folder / LOCK_FILE)
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


def is_locked(folder: Path) -> bool | None:
    """Does a process hold the lock of `folder`? None if that cannot be told, as on a file system without locks."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False  # the file is what a killed process left


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Wait until no other process is in such a block with the lock file `path`, which exists while one is.

    Args:
        what: the work in the block, for the message on standard error while waiting.

    Raises:
        OSError: the file cannot be created.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _wait(descriptor, what)
            if _is_named(descriptor, path):  # else the previous holder has just removed the file
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
            print(f"{what}: waiting for another process that is doing the same.", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{what}: this file system has no locks; make sure that no other process is doing the same.",
              file=sys.stderr)


def _acquire(folder: Path) -> int:
    while True:
        make_writable(folder)
        try:
            descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(f"{folder / LOCK_FILE}: cannot be opened ({error.strerror or error}). Name a writable "
                            "folder.") from error
        try:
            _lock(descriptor, folder)
            if _is_named(descriptor, folder / LOCK_FILE):  # else the previous holder has just removed the file
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        _try(descriptor)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        raise UserError(f"{folder}: another process is working in this folder{f' ({holder})' if holder else ''}. "
                        "Wait for it to end, end it, or name another folder.") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{folder}: this file system has no locks ({error.strerror}); make sure that nothing else works in this "
              "folder.", file=sys.stderr)
        return
    with contextlib.suppress(OSError):  # a full disk; this only tells others who holds the lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since "
                              f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)


def _try(descriptor: int) -> None:
    for pause in (0.002, 0.02, 0.05):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process may just be looking, see `is_locked`
            time.sleep(pause)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_named(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False
