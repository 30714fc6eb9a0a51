"""LoRA weights of the project GPT2_LoRA_Jittor, whose `save_lora_weights` writes A and B to an .npz.

Its names, for block i (A is (r, in), B is (out, r)):

    transformer_h.i.attn.qkv_proj.lora_A_q.weight   and lora_B_q, lora_A_k, lora_B_k, lora_A_v, lora_B_v
    transformer_h.i.attn.c_proj.lora_A.weight       and lora_B; likewise mlp.c_fc and mlp.c_proj

There, queries, keys and values are three projections with separate updates; in GPT-2 they are one, c_attn. Three
updates of rank r make one of rank 3 r, with A stacked and B block-diagonal:

    [ Bq Aq ]   [ Bq  0   0 ] [ Aq ]
    [ Bk Ak ] = [ 0   Bk  0 ] [ Ak ]
    [ Bv Av ]   [ 0   0   Bv] [ Av ]

The file contains neither alpha, whose default there is 16, nor dropout. Its `qv_only` multiplies the keys' update by 0,
so that it is never trained: Bk stays 0, which is equivalent.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import zipfile
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import IO, Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write
from jittor_lora.files.untrusted import open_input
from jittor_lora.formats.adapter_check import regular_file, show
from jittor_lora.formats.hugging_face import shorten
from jittor_lora.formats.low_rank import uniform
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import MAX_RANK

DEFAULT_ALPHA = 16.0
_LARGEST = 1 << 30  # bytes
_MOST_ARRAYS = 10_000
_MOST_INFLATED = 64 << 20  # bytes; beyond that, at most
_MOST_TIMES = 20  # times the size of the file
_ENCRYPTED = 1  # bit of a member's flags
_LONGEST_NPY_HEADER = 4096
# What zipfile raises at invalid offsets, methods, flags and strings.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError,
           ValueError, OverflowError)
_NAME = re.compile(r"transformer_h\.(\d{1,4})\.(?:attn\.qkv_proj\.lora_([AB])_([qkv])"
                   r"|(attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.lora_([AB]))\.weight")
_MODULE = re.compile(r"transformer\.h\.(\d+)\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)")
_FUSED = "attn.c_attn"


def read_reference_npz(path: Path, alpha: float = DEFAULT_ALPHA) -> dict[str, Factors]:
    """GPT-2's module names → A, B and scaling; the rank of c_attn is three times that of the others.

    Raises:
        UserError: another kind of file, or a damaged or hostile one; all offenders are listed.
    """
    arrays = _read_arrays(path)
    updates: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    wrong = []
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        if match is None:
            wrong.append(f"{show(name)}: expected a name such as transformer_h.0.attn.qkv_proj.lora_A_q.weight")
            continue
        layer, fused_part, third, module, part = match.groups()
        key = (int(layer), f"{_FUSED}.{third}" if third else module)
        updates.setdefault(key, {})[fused_part or part] = array
    for (layer, module), parts in updates.items():
        where = f"block {layer}, {module}"
        if len(parts) != 2:
            wrong.append(f"{where}: expected lora_A and lora_B, found lora_{next(iter(parts))} alone")
        elif len(parts["A"]) != parts["B"].shape[1]:
            wrong.append(f"{where}: expected A (r, in) and B (out, r), found shapes {parts['A'].shape} and "
                         f"{parts['B'].shape}")
        elif len(parts["A"]) > MAX_RANK // 3:
            wrong.append(f"{where}: expected a rank of at most {MAX_RANK // 3}, found {len(parts['A'])}")
    ranks = {len(parts["A"]) for parts in updates.values() if not wrong}
    if len(ranks) > 1:
        wrong.append(f"expected one rank, found {', '.join(map(str, sorted(ranks)))}")
    if not wrong:
        wrong = [f"block {layer}: expected the updates of q, k and v, of equal shapes"
                 for layer, module in updates if module.startswith(_FUSED) and not _three(updates, layer)]
    if wrong:
        raise UserError(f"{path}:\n  {shorten(dict.fromkeys(wrong), 20, chr(10) + '  ')}")
    scaling = alpha / ranks.pop()
    factors = {}
    for layer, module in sorted(updates):
        if module.startswith(_FUSED):
            thirds = [updates[layer, f"{_FUSED}.{third}"] for third in "qkv"]
            a, b = np.concatenate([t["A"] for t in thirds]), _block_diagonal([t["B"] for t in thirds])
            factors[f"transformer.h.{layer}.{_FUSED}"] = Factors(a, b, scaling)
        else:
            factors[f"transformer.h.{layer}.{module}"] = Factors(*(updates[layer, module][p] for p in "AB"), scaling)
    return factors


def write_reference_npz(path: Path, factors: Mapping[str, Factors]) -> tuple[int, float]:
    """Write updates of GPT-2's projections in that project's format, which has one rank and one scaling for all.

    A block-diagonal c_attn is split into its three blocks; otherwise q, k and v share A. Smaller ranks are padded with
    zeros, and other scalings multiplied into B.

    Returns: r and alpha, which that project's LoRAConfig needs to load the file.

    Raises:
        UserError: there are updates of modules that the project does not have; all are listed.
    """
    strange = [name for name in factors if not _MODULE.fullmatch(name)]
    if strange:
        raise UserError(f"{path}: the .npz of GPT2_LoRA_Jittor has c_attn, c_proj and c_fc of GPT-2's blocks only; "
                        f"found {shorten(map(show, strange), 8)}.")
    parts: dict[str, Factors] = {}
    for name, pair in factors.items():
        layer, module = _MODULE.fullmatch(name).groups()
        if module != _FUSED:
            parts[f"transformer_h.{layer}.{module}.lora_{{}}.weight"] = pair
            continue
        for third, update in zip("qkv", _thirds(pair)):
            parts[f"transformer_h.{layer}.attn.qkv_proj.lora_{{}}_{third}.weight"] = update
    rank, scaling, parts = uniform(parts)
    arrays = {name.format(part): array for name, pair in parts.items()
              for part, array in (("A", pair.a), ("B", pair.b))}
    with atomic_write(path, "wb") as stream:
        write_npz(stream, arrays)
    return rank, scaling * rank


def _three(updates: Mapping[tuple[int, str], Mapping[str, np.ndarray]], layer: int) -> bool:
    thirds = [updates.get((layer, f"{_FUSED}.{third}")) for third in "qkv"]
    return None not in thirds and len({(t["A"].shape, t["B"].shape) for t in thirds}) == 1


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    rows, columns = blocks[0].shape
    whole = np.zeros((len(blocks) * rows, len(blocks) * columns), np.float32)
    for i, block in enumerate(blocks):
        whole[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] = block
    return whole


def _thirds(pair: Factors) -> list[Factors]:
    """The updates of q, k and v that make up that of c_attn."""
    rows = len(pair.b) // 3
    blocks = [pair.b[i * rows : (i + 1) * rows] for i in range(3)]
    rank = len(pair.a) // 3
    if len(pair.a) == 3 * rank:
        own = [slice(i * rank, (i + 1) * rank) for i in range(3)]
        diagonal = [block[:, columns] for block, columns in zip(blocks, own)]
        if np.array_equal(_block_diagonal(diagonal), pair.b):
            return [Factors(pair.a[rows_of_a], b, pair.scaling) for rows_of_a, b in zip(own, diagonal)]
    return [Factors(pair.a, block, pair.scaling) for block in blocks]


def write_npz(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays as `numpy.savez` does, fetching one at a time from the mapping."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), allow_pickle=False)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, float32. Stated sizes are checked before anything is unpacked, and nothing that needs
    pickle is read."""
    size = regular_file(path).stat().st_size
    if size > _LARGEST:
        raise UserError(f"{path}: expected at most {_LARGEST:,} bytes of LoRA weights; found {size:,}.")
    _check_number_of_members(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            inflated = sum(member.file_size for member in members)
            if inflated > max(_MOST_INFLATED, _MOST_TIMES * size):
                raise UserError(f"{path}: its {size:,} bytes unpack to {inflated:,}, which no LoRA weights do.")
            times = Counter(member.filename for member in members)
            wrong = [f"{show(member.filename)}: expected an array, a name that ends in .npy, once, stored or deflated, "
                     "not encrypted"
                     for member in members if not member.filename.endswith(".npy") or times[member.filename] > 1
                     or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                     or member.flag_bits & _ENCRYPTED]
            if wrong:
                raise UserError(f"{path}:\n  {shorten(wrong, 20, chr(10) + '  ')}")
            if not members:
                raise UserError(f"{path}: holds no arrays.")
            arrays = {}
            for member in members:
                with archive.open(member) as stream:
                    arrays[member.filename[: -len(".npy")]] = _read_array(path, member, stream)
    except _DAMAGE as error:
        raise UserError(f"{path}: expected an .npz of LoRA weights; found something else or a damaged file "
                        f"({str(error)[:200]}).") from error
    return arrays


def _check_number_of_members(path: Path) -> None:
    """Every member of a zip has an entry that starts with these four bytes; arrays may contain them by chance."""
    if path.stat().st_size == 0:
        raise UserError(f"{path}: expected an .npz of LoRA weights; found an empty file.")
    with open_input(path) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        entries = sum(1 for _ in islice(re.finditer(b"PK\x01\x02", content), _MOST_ARRAYS + 1))
    if entries > _MOST_ARRAYS:
        raise UserError(f"{path}: expected at most {_MOST_ARRAYS:,} arrays; found more.")


def _parse_header(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """
    Raises:
        ValueError: the header is invalid.
    """
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return reader(io.BytesIO(header))
    except Exception as error:  # from Python's tokenizer and parser, and from numpy's dtypes
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from error


def _read_array(path: Path, member: zipfile.ZipInfo, stream: IO[bytes]) -> np.ndarray:
    """One array: magic and version, length of the header, the header (a Python literal), the values."""
    name = show(member.filename)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"{path}: {name}: expected a version of .npy that holds numbers, found {version}.")
    length_bytes = stream.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(length_bytes, "little")
    if length > _LONGEST_NPY_HEADER:
        raise UserError(f"{path}: {name}: expected a header of at most {_LONGEST_NPY_HEADER:,} bytes, "
                        f"found {length:,}.")
    shape, transposed, dtype = _parse_header(version, length_bytes + stream.read(length))
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise UserError(f"{path}: {name}: expected floating-point numbers, found {show(str(dtype))}"
                        f"{', which only a pickle can hold' if dtype.hasobject else ''}.")
    held = member.file_size - len(b"\x93NUMPY\x01\x00") - len(length_bytes) - length
    if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] * dtype.itemsize != held:
        raise UserError(f"{path}: {name}: expected a matrix of {held:,} bytes, found shape {show(shape)} of {dtype}.")
    values = np.frombuffer(stream.read(held), dtype)
    array = values.reshape(shape[::-1]).T if transposed else values.reshape(shape)
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name}: holds numbers that are not finite.")
    return array
