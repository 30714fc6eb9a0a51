"""`--base-precision bf16|q8|q4`: a base quantised once, into a file in the cache.

The file belongs to the base's place and the format. It is made again if the base's files have other names, sizes or
times of modification, or begin differently: after any usual change. Weights that are overwritten in place under the old
time of modification would go unnoticed here; a resumed run compares all weights.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Callable, Mapping, Optional

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write, make_folder, remove_leftovers
from jittor_lora.formats.bases import ResolvedBase, cache_folder, say_on_stderr
from jittor_lora.formats.hugging_face import Checkpoint
from jittor_lora.formats.quantised_file import (
    FORMATS,
    Planned,
    QuantisedTensors,
    as_stored,
    is_matrix,
    opened,
    planned,
    write,
)
from jittor_lora.ops.blocks import FLOAT32
from jittor_lora.system.locks import alone

_FOLDER = "quantised"  # in the cache
_HEADER_BYTES = 1 << 16  # of each file, that tell it from others
_SLACK = 64 << 20  # bytes of the disk left to others
_UNPACKED = {"Q6_K": 274 / 210}  # bytes in memory, where its 6-bit integers take 8, by those in a file


def in_precision(checkpoint: Checkpoint, base: ResolvedBase, precision: str, cache: Optional[Path] = None,
                 say: Callable[[str], None] = say_on_stderr) -> Checkpoint:
    """The checkpoint with its matrices in `precision`: bf16, q8 (Q8_0) or q4 (Q4_1; token embeddings and head Q8_0).
    In any other precision, and if its own files take no more, it stays as it is.

    Args:
        cache: by default `cache_folder()`.

    Raises:
        UserError: weights are not finite; or the file cannot be written, or finds no room.
    """
    if precision not in FORMATS:
        return checkpoint
    own = as_stored(checkpoint)
    plan = planned(checkpoint.config, own, precision)
    if _is_small(own, plan):
        say(f"{base.path}: its weights take no more than {precision} as they are; they stay so.")
        return checkpoint
    folder, source = (cache or cache_folder()) / _FOLDER, _source(base.path)
    path = folder / _file_name(base, precision)
    tensors = _opened(path, checkpoint, plan, source)
    if tensors is None:
        try:
            make_folder(folder)
            with alone(folder / ".lock", f"Quantising {base.name} to {precision}"):
                remove_leftovers(folder)
                tensors = _opened(path, checkpoint, plan, source)
                if tensors is None:
                    _make(path, checkpoint, plan, source, base, precision, say)
                    tensors = _opened(path, checkpoint, plan, source)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error}). {_WITHOUT}") from error
    if tensors is None:
        raise UserError(f"{path}: was written, but reads differently. Check the disk.")
    return replace(checkpoint, tensors=tensors, precision=precision, original=tensors.fingerprint)


def bytes_in(checkpoint: Checkpoint, precision: str) -> int:
    """The memory that the base's weights take in a base precision."""
    own = as_stored(checkpoint)
    if precision in FORMATS:
        plan = planned(checkpoint.config, own, precision)
        own = own if _is_small(own, plan) else plan
    if precision == "fp32":
        own = {name: tensor._replace(kind=FLOAT32) for name, tensor in own.items()}
    return round(sum(tensor.size * _UNPACKED.get(tensor.kind, 1.0) for tensor in own.values()))


_WITHOUT = "Free space, make it writable, or leave the base in its own precision: --base-precision auto."


def _is_small(own: Mapping[str, Planned], plan: Mapping[str, Planned]) -> bool:
    """Can all matrices be used from the base's own files, which take no more memory?"""
    matrices = [name for name, tensor in own.items() if is_matrix(name, tensor.shape)]
    return all(own[name].kind != FLOAT32 for name in matrices) and (
        sum(own[name].size for name in matrices) <= sum(plan[name].size for name in matrices))


def _make(path: Path, checkpoint: Checkpoint, plan: Mapping[str, Planned], source: str, base: ResolvedBase,
          precision: str, say: Callable[[str], None]) -> None:
    size, free = sum(tensor.size for tensor in plan.values()), shutil.disk_usage(path.parent).free
    if size + _SLACK > free:
        raise UserError(f"{path.parent}: {base.name} in {precision} takes {_mib(size)}, but {_mib(free)} are free. "
                        f"{_WITHOUT}")
    say(f"Quantising {base.name} to {precision}, once, into {path} ({_mib(size)}; delete it whenever you like) …")
    odd = [name for name, tensor in plan.items() if tensor.kind == "BF16"]
    if odd and precision != "bf16":
        say(f"Rows that do not divide into blocks of 32 are kept in bf16: {', '.join(odd[:4])}"
            f"{f' and {len(odd) - 4} more' if len(odd) > 4 else ''}.")
    with atomic_write(path, "wb") as stream:
        write(stream, checkpoint, plan, source, str(base.path))


def _opened(path: Path, checkpoint: Checkpoint, plan: Mapping[str, Planned],
            source: str) -> Optional[QuantisedTensors]:
    tensors = opened(path, checkpoint.config, plan)
    return tensors if tensors is not None and tensors.source == source else None


def _file_name(base: ResolvedBase, precision: str) -> str:
    place = hashlib.sha256(os.fsencode(os.path.realpath(base.path))).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", Path(base.name).name)[:60]
    return f"{name}-{place}.{precision}.gguf"


def _source(path: Path) -> str:
    """What tells these files from others, without reading them whole."""
    digest = hashlib.sha256()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file == path or file.is_file() and (file.suffix in (".safetensors", ".bin") or file.name == "config.json"):
            status = file.stat()
            digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            with open(file, "rb") as stream:
                digest.update(stream.read(_HEADER_BYTES))
    return digest.hexdigest()


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
