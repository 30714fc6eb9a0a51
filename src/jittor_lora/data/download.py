"""Downloads a file: over HTTPS only, verified, resumable, and complete or not at all."""

from __future__ import annotations

import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import make_folder, sha256_of, sync
from jittor_lora.system.locks import alone

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3
CHUNK = 1 << 18
HTTPS = "https://"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web with its expected size in bytes and checksum.

    Attributes:
        name: to be saved as; by default the last part of the URL.

    Raises:
        ValueError: the URL is not HTTPS.
    """

    url: str
    size: int
    sha256: str
    name: str = ""

    def __post_init__(self):
        if not self.url.startswith(HTTPS):
            raise ValueError(f"{self.url}: expected a URL that starts with {HTTPS}")

    @property
    def file_name(self) -> str:
        return self.name or self.url.rsplit("/", 1)[1]


def fetch(remote: RemoteFile, path: str | os.PathLike, advice: str) -> Path:
    """Download `remote` to `path` unless it already exists there.

    A partial download is kept beside it (`….part`) and resumed next time. The file gets its name only once its size
    and checksum are right. Processes that want the same file wait for each other. Progress is shown on standard error.

    Args:
        advice: what to do without a network; ends error messages.

    Raises:
        UserError: the server cannot be reached, answers with an error, or sends another file; the disk is full.
    """
    path = Path(path)
    try:
        if _is_whole(path, remote):
            return path
        make_folder(path.parent)
        with alone(path.with_name(f".{path.name}.lock"), f"Downloading {path.name}"):
            if not _is_whole(path, remote):
                _complete(path.with_name(path.name + ".part"), path, remote, advice)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). Free space or fix the permissions.") \
            from error
    return path


def _is_whole(path: Path, remote: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == remote.size and sha256_of(path) == remote.sha256


def _complete(part: Path, path: Path, remote: RemoteFile, advice: str) -> None:
    with open(part, "ab") as file:
        _fill(file, remote, path.name, advice)
    digest = sha256_of(part)
    if digest != remote.sha256:
        part.unlink()
        raise UserError(
            f"{remote.url}: expected a file with sha256 {remote.sha256}, found {digest}. The download was "
            f"removed; try again. {advice}"
        )
    os.replace(part, path)
    sync(path.parent)


def _fill(file: BinaryIO, remote: RemoteFile, name: str, advice: str) -> None:
    """Append to `file` until it has its full size."""
    if file.tell() > remote.size:
        _restart(file)
    with tqdm(total=remote.size, initial=file.tell(), unit="B", unit_scale=True, desc=name, file=sys.stderr) as bar:
        problem = ""
        for attempt in range(ATTEMPTS):
            time.sleep(attempt)
            try:
                if file.tell() < remote.size:
                    _receive(file, remote, bar)
            except _Refused as error:
                problem = str(error)
                break
            except _Broken as error:
                problem = str(error)
            if file.tell() == remote.size:
                file.flush()
                os.fsync(file.fileno())
                return
    kept = f" {file.tell():,} of {remote.size:,} bytes are kept for the next try." if file.tell() else ""
    raise UserError(f"{remote.url}: cannot be downloaded ({problem}).{kept} {advice}")


class _Broken(Exception):
    """The connection failed or broke; worth a retry."""


class _Refused(Exception):
    """The server answered, and a retry would get the same answer."""


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but only to HTTPS."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith(HTTPS):
            raise _Refused(f"the server redirects to {newurl[:200]}, which is not {HTTPS}…")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(file: BinaryIO, remote: RemoteFile, bar: tqdm) -> None:
    """Request the missing bytes once; writes at most the full size."""
    request = urllib.request.Request(remote.url, headers={"User-Agent": "jittor-lora", "Accept-Encoding": "identity"})
    if file.tell():
        request.add_header("Range", f"bytes={file.tell()}-")
    # With its own SSL context, because Jittor turns certificate checks off for the whole process.
    https = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    try:
        response = urllib.request.build_opener(https, _OnlyHttps).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        kind = _Broken if error.code >= 500 else _Refused
        raise kind(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(getattr(error, "reason", error) or type(error).__name__)) from error
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
            _restart(file)
            bar.reset(total=remote.size)
        while file.tell() < remote.size:
            try:
                block = response.read(min(CHUNK, remote.size - file.tell()))
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(str(error) or type(error).__name__) from error
            if not block:
                raise _Broken("the connection ended early")
            file.write(block)
            bar.update(len(block))


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()
