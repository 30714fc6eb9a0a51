"""A base's tensors in fewer bits, in a GGUF file of our own: written from any checkpoint, and mapped.

Tensors have Hugging Face's names; matrices are (out, in), whatever their orientation there. Tokenizer and configuration
stay with the base. The file ends with the CRC-32 of all that precedes, its header last: it tells a damaged file, not
one that somebody forged.
"""

from __future__ import annotations

import os
import struct
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO, Iterator, Mapping, NamedTuple, Optional

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.finite import all_finite, kinds
from jittor_lora.files.mapped import release
from jittor_lora.formats.base_record import Fingerprint
from jittor_lora.formats.first_bytes import GGUF
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.hugging_face import Checkpoint
from jittor_lora.model.config import ModelConfig, is_conv1d, tensor_shapes
from jittor_lora.model.families import FAMILIES
from jittor_lora.ops.blocks import FLOAT32, Blocks, stored_in

FORMATS = {"bf16": "BF16", "q8": "Q8_0", "q4": "Q4_1"}  # of most matrices, by precision
_TABLES = {**FORMATS, "q4": "Q8_0"}  # of token embeddings and head
_CHUNK = 1 << 20  # values quantised, or bytes read, at a time
_ALIGNMENT = 32
_PREFIX = "jittor_lora."
_VERSION = 3  # of GGUF
_STRING = 8  # a type of metadata
_SUM = struct.Struct("<I")


class Planned(NamedTuple):
    """A tensor of the file: `kind` is ggml's name of its format, `shape` (out, in) or (n,)."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        values, stored = _block(self.kind)
        return prod(self.shape) // values * stored


def as_stored(checkpoint: Checkpoint) -> dict[str, Planned]:
    """The tensors as the checkpoint's own files have them; F32 is what is decoded to float32."""
    found = {}
    for name, shape in tensor_shapes(checkpoint.config).items():
        shape = shape[::-1] if is_conv1d(checkpoint.config, name) else shape
        blocks = stored_in(checkpoint.tensors, name) if is_matrix(name, shape) else None
        found[name] = Planned(FLOAT32 if blocks is None else blocks.kind, shape)
    return found


def planned(config: ModelConfig, own: Mapping[str, Planned], precision: str) -> dict[str, Planned]:
    """What the file holds. A matrix that takes no more bits as it is, `own`, stays so; one whose rows do not divide
    into blocks of 32 is rounded to bf16; norms, biases and positions are float32."""
    plan = dict(own)
    tables = {f"{FAMILIES[config.family].body}.{FAMILIES[config.family].embedding}.weight", "lm_head.weight"}
    for name, (_, shape) in own.items():
        if is_matrix(name, shape):
            kind = (_TABLES if name in tables else FORMATS)[precision]
            wanted = Planned("BF16" if shape[1] % _block(kind)[0] else kind, shape)
            plan[name] = min(own[name], wanted, key=lambda tensor: tensor.size)
    return plan


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Is this tensor stored in fewer bits? GPT-2's positions are not: they are few, and added as they are."""
    return len(shape) == 2 and not name.endswith(".wpe.weight")


def write(stream: BinaryIO, checkpoint: Checkpoint, plan: Mapping[str, Planned], source: str, where: str) -> None:
    """Write the file, some rows at a time, by the gguf library.

    Args:
        source: what tells the checkpoint from others.
        where: names the checkpoint in errors.

    Raises:
        UserError: weights are not finite.
    """
    fingerprint, wrong, total = Fingerprint(), [], 0
    start = len(_header(plan, source, "0" * 64))
    stream.write(bytes(start))
    for name, tensor in plan.items():
        try:
            for part in _encoded(checkpoint, name, tensor, fingerprint):
                stream.write(part)
                total = zlib.crc32(part, total)
        except _NotFinite as error:
            wrong.append(f"{name}: {error}")
        padding = bytes(-tensor.size % _ALIGNMENT)
        stream.write(padding)
        total = zlib.crc32(padding, total)
    if wrong:
        raise UserError(f"{where}: weights hold numbers that are not finite:\n  " + "\n  ".join(some_of_each(wrong)) +
                        "\nThe file is damaged: fetch or train the base again.")
    header = _header(plan, source, fingerprint.hexdigest())
    stream.write(_SUM.pack(zlib.crc32(header, total)))
    stream.seek(0)
    stream.write(header)


class _NotFinite(Exception):
    """Numbers that are not finite, in words."""


class QuantisedTensors(Mapping[str, np.ndarray]):
    """The tensors under Hugging Face's names; `stored` gives matrices as they are, access by name decoded ones.

    Attributes:
        source: what `write` was given.
        fingerprint: of the weights that were quantised.
    """

    def __init__(self, file: GgufFile, config: ModelConfig):
        self._file, self._config = file, config
        self.source, self.fingerprint = (str(file.metadata.get(_PREFIX + key)) for key in ("source", "fingerprint"))

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._file[name]
        return tensor.T if tensor.ndim == 2 and is_conv1d(self._config, name) else tensor

    def stored(self, name: str) -> Optional[Blocks]:
        """See `ops.blocks.stored_in`."""
        return self._file.blocks(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def opened(path: Path, config: ModelConfig, plan: Mapping[str, Planned]) -> Optional[QuantisedTensors]:
    """The tensors in the file `path`; None if there is none, or it is damaged or another one."""
    if not path.is_file():
        return None
    try:
        file = GgufFile(path)
        found = {name: Planned(_name(entry.kind), entry.shape) for name, entry in file.entries.items()}
        if found != plan or not _is_whole(path, min(entry.begin for entry in file.entries.values())):
            return None
    except (UserError, OSError):
        return None
    return QuantisedTensors(file, config)


def _encoded(checkpoint: Checkpoint, name: str, tensor: Planned, fingerprint: Fingerprint) -> Iterator[bytes]:
    """The tensor's bytes in parts.

    Raises:
        _NotFinite: it has numbers that are not.
    """
    import gguf.quants  # slow to import

    transposed, blocks = is_conv1d(checkpoint.config, name), stored_in(checkpoint.tensors, name)
    if blocks is None:
        array = checkpoint.tensors[name]
        fingerprint.add(name, array)
        blocks = Blocks.of(array.T if transposed else array.reshape(len(array), -1))
    else:
        fingerprint.add_stored(name, blocks, transposed)
    kind = gguf.GGMLQuantizationType[tensor.kind]
    for part in blocks.parts(_CHUNK):
        if not all_finite(part):
            raise _NotFinite(kinds(part))
        if blocks.kind != tensor.kind:
            yield gguf.quants.quantize(part, kind).tobytes()
        elif tensor.kind == FLOAT32:
            yield part.tobytes()
    if blocks.kind == tensor.kind != FLOAT32:
        yield np.ascontiguousarray(blocks.data).tobytes()
    release(blocks.data)


def _header(plan: Mapping[str, Planned], source: str, fingerprint: str) -> bytes:
    """All before the tensors' data, padded."""
    import gguf

    metadata = {"general.architecture": "jittor-lora-base", _PREFIX + "source": source,
                _PREFIX + "fingerprint": fingerprint}
    parts = [GGUF, struct.pack("<IQQ", _VERSION, len(plan), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), struct.pack("<I", _STRING), _text(value)]
    offset = 0
    for name, tensor in plan.items():
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        kind = gguf.GGMLQuantizationType[tensor.kind]
        parts += [_text(name), dimensions, struct.pack("<IQ", kind, offset)]
        offset += -(-tensor.size // _ALIGNMENT) * _ALIGNMENT
    header = b"".join(parts)
    return header + bytes(-len(header) % _ALIGNMENT)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _is_whole(path: Path, start: int) -> bool:
    """Does the sum at the end fit? Read, not mapped, so that no pages of the file stay in this process."""
    total, left = 0, os.path.getsize(path) - start - _SUM.size
    with open(path, "rb") as stream:
        header = stream.read(start)
        while left > 0:
            part = stream.read(min(_CHUNK, left))
            if not part:
                return False
            total, left = zlib.crc32(part, total), left - len(part)
        return stream.read() == _SUM.pack(zlib.crc32(header, total))


def _block(kind: str) -> tuple[int, int]:
    """Values and bytes of a block."""
    import gguf

    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def _name(kind: int) -> str:
    import gguf

    return gguf.GGMLQuantizationType(kind).name
