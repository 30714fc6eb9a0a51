"""Base models as Hugging Face directories: config.json and safetensors or PyTorch weights, one file or shards with an
index.

Reads what `save_pretrained` of the families' classes writes in any version of transformers, with and without head
(GPT2LMHeadModel and GPT2Model), and writes the form with the head.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.atomic import atomic_write, written_together
from jittor_lora.files.untrusted import load_json, read_input, unreadable
from jittor_lora.formats.first_bytes import described, first_bytes
from jittor_lora.formats.safetensors_file import SafetensorsFile, write_safetensors
from jittor_lora.formats.tensor_file import FLOAT_TYPES, TensorFile
from jittor_lora.formats.tensor_names import wrapper_note, wrapper_of
from jittor_lora.formats.torch_file import TorchFile
from jittor_lora.model.config import ModelConfig, is_conv1d, tensor_shapes
from jittor_lora.model.families import FAMILIES, Family
from jittor_lora.model.families.fields import token_ids

if TYPE_CHECKING:
    from jittor_lora.ops.blocks import Blocks

# Constants that older versions of transformers saved among the weights
_BUFFERS = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")
# Far above any real file: the largest tokenizer.json in use has 35 MB.
LARGEST_JSON = 64 << 20  # bytes
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
# Settings of generation_config.json that change which tokens are chosen, with their neutral values
_GENERATION = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "num_beams": 1,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "min_length": 0, "min_new_tokens": None, "bad_words_ids": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "sequence_bias": None,
    "exponential_decay_length_penalty": None, "guidance_scale": 1.0, "stop_strings": None,
}
# Kinds of weights; of several in a folder the first is read.
_WEIGHTS: Mapping[str, type[TensorFile]] = {"model.safetensors": SafetensorsFile, "pytorch_model.bin": TorchFile}
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass
class Checkpoint:
    """A base model read from files.

    Attributes:
        config: its sizes.
        tensors: float32 arrays with exactly the names and shapes of `tensor_shapes(config)`, loaded on access;
            float32 weights are read-only views of the mapped file. Its method `stored`, if it has one, gives a matrix
            as it is in the file (see `ops.blocks.stored_in`).
        notes: sentences on what was read differently from how it is stored.
        generation_config: Hugging Face's generation_config.json, if any; it is saved back unchanged.
        end_ids: tokens that end a text according to config.json or generation_config.json.
        precision: "auto" as in the files; "bf16", "q8" or "q4" where `formats.quantised_base` has made others of them.
        original: then, the fingerprint of the weights in the files.
    """

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]
    generation_config: dict | None = None
    notes: tuple[str, ...] = ()
    precision: str = "auto"
    original: str | None = None

    @property
    def end_ids(self) -> tuple[int, ...]:
        more = token_ids((self.generation_config or {}).get("eos_token_id"))
        return (*self.config.eos_token_ids, *(token for token in more or () if 0 <= token < self.config.vocab_size))


def sampling_lines(checkpoint: Checkpoint) -> list[str]:
    """Lines about settings in generation_config.json, of which only the end-of-text tokens are applied."""
    wanted = checkpoint.generation_config or {}
    if not wanted.get("do_sample"):  # transformers does not sample then
        wanted = {name: value for name, value in wanted.items() if name not in _SAMPLING}
    found = [f"{name} {str(wanted[name])[:40]}" for name, neutral in _GENERATION.items()
             if wanted.get(name) not in (None, neutral)]
    return [f"generation_config.json asks for {shorten(found, 8)}, which is not applied here: pass the "
            "corresponding flags to apply it."] if found else []


def read_checkpoint(folder: str | PathLike) -> Checkpoint:
    """Open the model in `folder`; weights stay in the file until used.

    Raises:
        UserError: no such folder, no model in it, another architecture, malformed files, or tensors that are missing,
            unexpected, of the wrong shape or not floating point (all in one error).
    """
    folder = Path(folder)
    try:
        return _read_folder(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def write_checkpoint(folder: str | PathLike, checkpoint: Checkpoint, overwrite: bool = False) -> None:
    """Write a directory that transformers loads: config.json, model.safetensors (float32), generation_config.json.

    config.json is the one read, with `architectures` and the dtype set to what is written. Files get their names when
    all are on disk, config.json last. The tokenizer is saved by `Tokenizer.save`.

    Args:
        overwrite: replace a model in `folder`. An adapter is never overwritten.

    Raises:
        UserError: the folder contains a model or an adapter, or cannot be written, or tensors are not finite. The
            files in it are then unchanged.
    """
    folder = Path(folder)
    old = sorted(path.name for path in _model_files(folder))
    if "adapter_config.json" in old:  # PEFT and transformers would apply that adapter to this model
        raise UserError(f"{folder}: already contains an adapter. Name another folder.")
    if old and not overwrite:
        raise UserError(f"{folder}: already contains a model ({shorten(old, 5)}). "
                        "Name another folder, or ask for it to be overwritten.")
    config = {**checkpoint.config.source, "architectures": [FAMILIES[checkpoint.config.family].architecture]}
    for key in ("torch_dtype", "dtype"):  # the type in which transformers loads
        if key in config:
            config[key] = "float32"
    with written_together(folder, "config.json") as stage:
        weights = stage / "model.safetensors"
        with atomic_write(weights, "wb") as stream:
            write_safetensors(stream, checkpoint.tensors, tensor_shapes(checkpoint.config), {"format": "pt"}, weights)
        if checkpoint.generation_config is not None:
            with atomic_write(stage / "generation_config.json") as stream:
                stream.write(_json_text(checkpoint.generation_config))
        with atomic_write(stage / "config.json") as stream:
            stream.write(_json_text(config))
    # No file of the replaced model may be mistaken for part of this one.
    for name in old:
        if _SHARD.fullmatch(name) or name == "model.safetensors.index.json":
            (folder / name).unlink()
    if checkpoint.generation_config is None:
        (folder / "generation_config.json").unlink(missing_ok=True)


def read_json(path: Path, object_of: Callable[[list[tuple[str, Any]]], dict[str, Any]] = dict) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        object_of: builds an object from its keys and values; its ValueError is reported as an error in the file.

    Raises:
        UserError: the file cannot be read, is not UTF-8 JSON, or is not an object.
    """
    try:
        value = load_json(read_input(path, LARGEST_JSON).decode("utf-8"), object_pairs_hook=object_of)
    except ValueError as error:
        what = described(first_bytes(path)) or f"something else ({str(error)[:200]})"
        raise UserError(f"{path}: expected JSON; found {what}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; found {type(value).__name__}.")
    return value


def shorten(items: Iterable[str], most: int, separator: str = ", ") -> str:
    """The first `most` items in one text, and the number of the rest."""
    items = list(items)
    rest = [f"… and {len(items) - most} more"] if len(items) > most else []
    return separator.join(items[:most] + rest)


def _read_folder(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise UserError(_not_a_folder(folder))
    if not (folder / "config.json").is_file():
        raise UserError(_no_config(folder))
    config = ModelConfig.from_hugging_face(read_json(folder / "config.json"), str(folder / "config.json"))
    files = _weight_files(folder)
    weights = _Weights(folder, config, files)
    notes = [*([wrapper_note(weights.wrapper)] if weights.wrapper else []), *config.notes]
    if isinstance(files[0], TorchFile):
        notes.append(f"weights from {files[0].path.name}, read without unpickling; nothing in it is run.")
    return Checkpoint(config, weights, _generation_config(folder / "generation_config.json"),
                      tuple(f"{folder}: {note}" for note in notes))


def _generation_config(path: Path) -> dict | None:
    if not path.is_file():
        return None
    values = read_json(path)
    if token_ids(values.get("eos_token_id")) is None:
        raise UserError(f"{path}: eos_token_id: expected a token id, a list of them, or null; found "
                        f"{str(values['eos_token_id'])[:60]}.")
    return values


class _Weights(Mapping[str, np.ndarray]):
    """The tensors of all files under their canonical names."""

    def __init__(self, folder: Path, config: ModelConfig, files: Sequence[TensorFile]):
        self._config, self._shapes, family = config, tensor_shapes(config), FAMILIES[config.family]
        self._places: dict[str, tuple[TensorFile, str]] = {}
        self.wrapper = wrapper_of((name for file in files for name in file.entries),
                                  lambda name: family.canonical(name) in self._shapes)
        problems = []
        for file in files:
            for name in file.entries:
                canonical = family.canonical(name[len(self.wrapper) :])
                if _BUFFERS.fullmatch(name):
                    continue
                if canonical in self._places:
                    first = self._places[canonical][0].path.name
                    problems.append(f"{name}: found twice, in {first} and {file.path.name}")
                self._places[canonical] = file, name
        head = self._places.pop("lm_head.weight", None) if config.tied_head else None
        problems += self._misfits()
        missing, unexpected = list(self._missing()), list(self._unexpected())
        whole = not (problems or missing or unexpected)
        if whole and head is not None and not self._equals_embedding(head, family):
            problems.append("lm_head.weight: differs from the embedding though config.json says tie_word_embeddings: "
                            "true. Set it to false there if the model has a separate head")
        if problems or missing or unexpected:
            raise UserError(f"{folder}: the weights are not those of the {config.family} model in config.json:\n  "
                            + "\n  ".join(some_of_each(problems, missing, unexpected)))

    def _missing(self) -> Iterator[str]:
        for name, shape in self._shapes.items():
            if name not in self._places:
                yield f"{name}: missing, expected shape {shape}"

    def _unexpected(self) -> Iterator[str]:
        for name, (file, stored) in self._places.items():
            if name not in self._shapes:
                yield f"{stored}: unexpected, of shape {file.entries[stored].shape}"

    def _misfits(self) -> Iterator[str]:
        for name, shape in self._shapes.items():
            if name not in self._places:
                continue
            file, stored = self._places[name]
            entry = file.entries[stored]
            if entry.shape != shape:
                yield f"{stored}: expected shape {shape}; found {entry.shape}"
            if entry.dtype not in FLOAT_TYPES:
                yield f"{stored}: expected one of {', '.join(FLOAT_TYPES)}; found {entry.dtype}"

    def _equals_embedding(self, head: tuple[TensorFile, str], family: Family) -> bool:
        file, stored = self._places[f"{family.body}.{family.embedding}.weight"]
        a, b = file.entries[stored], head[0].entries[head[1]]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and np.array_equal(file.raw(stored), head[0].raw(head[1]))

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored = self._places[name]
        return file[stored]

    def stored(self, name: str) -> Blocks | None:
        """See `ops.blocks.stored_in`: a matrix of 16-bit numbers."""
        file, stored = self._places[name]
        return file.blocks(stored, is_conv1d(self._config, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _weight_files(folder: Path) -> Sequence[TensorFile]:
    """The first kind of weights that the folder has, opened."""
    for name, kind in _WEIGHTS.items():
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return [_open(kind, single)]
        if index.is_file():
            return [_open(kind, path) for path in _shards(index, single.suffix)]
    raise UserError(_no_weights(folder))


def _open(kind: type[TensorFile], path: Path) -> TensorFile:
    try:
        return kind(path)
    except UserError as error:
        if kind is not TorchFile:
            raise
        source = str(path.parent)
        convert = ("from transformers import AutoModelForCausalLM as M; "
                   f"M.from_pretrained({source!r}).save_pretrained({source!r})")
        raise UserError(f"{error}\nIf you trust the file and torch can read it, convert it where torch and "
                        f"transformers are installed:\n  python -c {shlex.quote(convert)}") from error


def _shards(index: Path, suffix: str) -> list[Path]:
    """The files that an index names."""
    folder, parts = index.parent, read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
        raise UserError(f"{index}: weight_map: expected file names by tensor; found {str(parts)[:80]}.")
    names = sorted(set(parts.values()))
    strange = [name for name in names if Path(name).name != name or not name.endswith(suffix)]
    if strange:
        raise UserError(f"{index}: weight_map: expected {suffix} files in the same folder; "
                        f"found {shorten(strange, 5)}.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: files named in {index.name} are missing: {shorten(missing, 10)}. Fetch them too.")
    return [folder / name for name in names]


def _model_files(folder: Path) -> list[Path]:
    patterns = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such folder."
    what = described(first_bytes(path)) or "a file"
    return f"{path}: expected a folder with config.json and model.safetensors; found {what}."


def _no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return (f"{folder}: expected a base model; found an adapter. "
                "Name its base model as the base and this folder as the adapter.")
    models = sorted(path.name for path in folder.glob("*.gguf"))
    if models:
        return f"{folder}: no config.json, but {shorten(models, 3)}. Name the .gguf file itself."
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside:
        return f"{folder}: no config.json, but models in its subfolders: {shorten(inside, 3)}. Name one of those."
    adapters = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    if adapters:
        return (f"{folder}: expected a base model; found a folder of adapters ({shorten(adapters, 3)}). "
                "Name their base model as the base and this folder as the adapter.")
    found = sorted(path.name for path in folder.iterdir())
    return (f"{folder}: expected config.json, model.safetensors and tokenizer files; "
            f"found {shorten(found, 8) if found else 'an empty folder'}.")


def _no_weights(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir())
    return (f"{folder}: expected {' or '.join(_WEIGHTS)}, or its shards with their .index.json; "
            f"found {shorten(found, 8)}.")


def _json_text(value: dict) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
