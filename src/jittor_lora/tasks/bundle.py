"""A folder to carry to a machine without a network: packages, base, data, and a script that installs them."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional

from jittor_lora.data.columns import Columns
from jittor_lora.data.sources import find_data, read_files
from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_folder, sha256_of
from jittor_lora.formats import hub
from jittor_lora.formats.bases import ResolvedBase, load_base, resolve_base
from jittor_lora.tasks import bundle_texts
from jittor_lora.tasks.bundle_wheels import Target, pip, wheels

WHEEL_BYTES = 250 << 20  # about twice what they take
SUMS = "SHA256SUMS"


class Bundle(NamedTuple):
    """
    Attributes:
        folder: the new folder.
        size: of its files in bytes.
        train: the command that trains there, after install.sh.
    """

    folder: Path
    size: int
    train: str


def bundle(base: str, data: str, dev: Optional[str], output: Path, target: Target,
           run_pip: Callable[..., None] = pip) -> Bundle:
    """Gather in the new folder `output` all that `train` needs on a machine of the kind `target`.

    Args:
        base: any name that `resolve_base` accepts; fetched if necessary.
        data, dev: training and validation data, by any name that `find_data` accepts.
        run_pip: runs pip with these arguments.

    Raises:
        UserError: base or data cannot be found or read, a package is not available for that machine, or there is too
            little disk space. Nothing is left then, also after an interruption.
    """
    found = resolve_base(base)
    load_base(found, say=lambda text: None)
    files = {split: _one_file(name, split) for split, name in (("train", data), ("dev", dev)) if name is not None}
    weights = _files_of(found)
    _check_space(output, [*weights, *files.values()])
    with atomic_folder(output) as stage:
        wheels(stage / "wheels", target, run_pip)
        for path in weights:
            _copy(path, stage / "base" / path.name)
        places = _copy_data(files, stage)
        model = Path("base", weights[0].name) if found.kind == "gguf" else Path("base")
        load_base(resolve_base(str(stage / model)), say=lambda text: None)  # the copy is complete
        train = _command(model, places)
        for name, text in bundle_texts.files(target, train).items():
            (stage / name).write_text(text, encoding="utf-8", newline="\n")
        (stage / bundle_texts.INSTALL).chmod(0o755)
        size = _write_sums(stage)
    return Bundle(output, size, train)


def _one_file(name: str, split: str) -> Path:
    """The file of a data set, which has been read without errors."""
    shown, paths = find_data(name, split)
    if len(paths) > 1:
        raise UserError(f"{shown}: expected one file, found {len(paths)} parts. Name one of them, as in "
                        f"{name}/{paths[0].name}, or join them into a file.")
    read_files(paths, shown, "training" if split == "train" else "evaluation", Columns())
    return paths[0]


def _files_of(base: ResolvedBase) -> list[Path]:
    """The files of a model: the .gguf file, or those of its folder that are read."""
    if base.kind == "gguf":
        return [base.path]
    return sorted({path for pattern in hub.FILES for path in base.path.glob(pattern) if path.is_file()})


def _check_space(output: Path, files: list[Path]) -> None:
    needed = WHEEL_BYTES + sum(path.stat().st_size for path in files)
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(f"--output {output}: expected {needed / 2**30:.1f} GiB of free disk space, found "
                        f"{free / 2**30:.1f} GiB. Free space, or name a folder on another disk.")


def _copy_data(files: dict[str, Path], stage: Path) -> dict[str, Path]:
    """Copies data files into `stage`; returns their paths in it, by split."""
    places: dict[str, Path] = {}
    for split, path in files.items():
        place = Path("data", re.sub(r"[^\w.-]", "_", path.name))
        places[split] = place.with_name(f"{split}-{place.name}") if place in places.values() else place
        _copy(path, stage / places[split])
    return places


def _command(base: Path, data: dict[str, Path]) -> str:
    flags = ["--base", base.as_posix(), "--data", data["train"].as_posix()]
    flags += ["--dev", data["dev"].as_posix()] if "dev" in data else []
    return shlex.join([".venv/bin/jittor-lora", "train", *flags, "--output", "runs/first"])


def _copy(source: Path, place: Path) -> None:
    print(f"{source.name} …", file=sys.stderr, flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)


def _write_sums(stage: Path) -> int:
    """Write the checksums of all files; returns their total size."""
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(stage).as_posix()}\n" for path in files]
    (stage / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")
    return sum(path.stat().st_size for path in files)
