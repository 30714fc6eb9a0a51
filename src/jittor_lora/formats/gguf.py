"""Base models in GGUF files (llama.cpp) of the architectures gpt2, llama, qwen2 and qwen3, quantised or not.

Tensors get the names and orientation of the Hugging Face model that the file was converted from, and a config.json is
composed, so that the model can be saved as a Hugging Face directory.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Mapping, NamedTuple

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.formats.gguf_config import ROPE_FACTORS, compose_config
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.hugging_face import Checkpoint, shorten
from jittor_lora.model.config import ModelConfig, is_conv1d, tensor_shapes

if TYPE_CHECKING:
    from jittor_lora.ops.blocks import Blocks

# Hugging Face's names to llama.cpp's, for the tensors in a block and the rest
_GPT2 = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
_GPT2_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_LLAMA = {"embed_tokens": "token_embd", "norm": "output_norm"}
_LLAMA_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def read_gguf(path: str | PathLike) -> Checkpoint:
    """Open the model in a GGUF file; tensors are decoded to float32 on access.

    Raises:
        UserError: no such file, not GGUF, truncated or malformed, another architecture, unsupported settings, or
            tensors that are missing, unexpected or of the wrong shape (all in one error).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a GGUF file; found {'a folder' if path.is_dir() else 'nothing'}.")
    return gguf_checkpoint(GgufFile(path))


def gguf_checkpoint(file: GgufFile) -> Checkpoint:
    """`read_gguf` for a file that is already open."""
    config = ModelConfig.from_hugging_face(compose_config(file), str(file.path))
    return Checkpoint(config, _GgufWeights(file, config), notes=tuple(f"{file.path}: {note}" for note in config.notes))


def gguf_tensors(file: GgufFile, config: ModelConfig) -> Mapping[str, np.ndarray]:
    """The tensors of a model whose configuration is known, with Hugging Face's names.

    Raises:
        UserError: tensors are missing, unexpected or of the wrong shape.
    """
    return _GgufWeights(file, config)


class _GgufWeights(Mapping[str, np.ndarray]):
    """The tensors of a GGUF file with Hugging Face's names, shapes and order of rows."""

    def __init__(self, file: GgufFile, config: ModelConfig):
        self._file = file
        self._places: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
        problems = []
        for name, shape in tensor_shapes(config).items():
            stored, restore = _place(name, config)
            self._places[name] = stored, restore
            expected = shape[::-1] if restore is _transposed else shape
            if stored not in file.entries:
                problems.append(f"{stored}: missing, expected shape {expected}")
            elif file.entries[stored].shape != expected:
                problems.append(f"{stored}: expected shape {expected}; found {file.entries[stored].shape}")
        used = {stored for stored, _ in self._places.values()} | {"output.weight"}
        used |= {ROPE_FACTORS} if config.network == "llama" else set()
        problems += [f"{stored}: unexpected, of shape {entry.shape}"
                     for stored, entry in file.entries.items() if stored not in used]
        if problems:
            raise UserError(f"{file.path}: the tensors are not those of a {config.family} model:\n  "
                            + shorten(problems, 20, "\n  "))

    def __getitem__(self, name: str) -> np.ndarray:
        stored, restore = self._places[name]
        return restore(self._file[stored])

    def stored(self, name: str) -> Blocks | None:
        """See `ops.blocks.stored_in`: a matrix of a kind that is computed with as it is in the file."""
        stored, restore = self._places[name]
        blocks = self._file.blocks(stored)
        if blocks is None or restore in (_unchanged, _transposed):  # in GGUF every matrix is (out, in)
            return blocks
        return blocks._replace(data=restore(blocks.data))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _place(name: str, config: ModelConfig) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """llama.cpp's name of a tensor, and the function that restores Hugging Face's tensor from it."""
    if name == "lm_head.weight":
        return "output.weight", _unchanged
    whole, block = (_GPT2, _GPT2_BLOCK) if config.network == "gpt2" else (_LLAMA, _LLAMA_BLOCK)
    parts = name.split(".")[1:]  # without "transformer." or "model."
    module, kind = ".".join(parts[:-1]), parts[-1]
    if module in whole:
        return f"{whole[module]}.{kind}", _unchanged
    module = ".".join(parts[2:-1])  # without "h.0." or "layers.0."
    restore = _unchanged
    if is_conv1d(config, name):
        restore = _transposed
    elif config.family == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
        restore = _Unpermuted(config.heads if module.endswith("q_proj") else config.kv_heads)
    return f"blk.{parts[1]}.{block[module]}.{kind}", restore


class StoredForm(NamedTuple):
    """How llama.cpp stores a tensor of Hugging Face's model: the way back from `_place`.

    Attributes:
        name: llama.cpp's.
        transposed: whether it has GPT-2's (in, out) as (out, in).
        heads: by which its rows are reordered; 0 if they are not.
    """

    name: str
    transposed: bool
    heads: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if self.transposed else shape

    def tensor(self, tensor: np.ndarray) -> np.ndarray:
        return self.rows(_transposed(tensor) if self.transposed else tensor)

    def rows(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor that is (out, …) already, with its rows in llama.cpp's order."""
        if not self.heads:
            return tensor
        halves = tensor.reshape(self.heads, 2, len(tensor) // self.heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)


def stored_form(name: str, config: ModelConfig) -> StoredForm:
    """
    Args:
        name: of a tensor of the Hugging Face model.
        config: of a family that llama.cpp has by that name (`gguf_metadata.as_llama_cpp_has_it`).
    """
    stored, restore = _place(name, config)
    return StoredForm(stored, restore is _transposed, restore.heads if isinstance(restore, _Unpermuted) else 0)


def _unchanged(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _transposed(tensor: np.ndarray) -> np.ndarray:
    """GGUF's (out, in) to the (in, out) of GPT-2's Conv1D, or back."""
    return np.ascontiguousarray(tensor.T)


class _Unpermuted:
    """Undo llama.cpp's order of Llama's query and key rows.

    Its rotary embedding of that architecture rotates neighbouring rows, Hugging Face's the rows i and i + head_dim / 2,
    so its conversion interleaves the two halves of each head (`permute` in convert_hf_to_gguf.py).
    """

    def __init__(self, heads: int):
        self.heads = heads

    def __call__(self, tensor: np.ndarray) -> np.ndarray:
        alternating = tensor.reshape(self.heads, len(tensor) // self.heads // 2, 2, *tensor.shape[1:])
        return alternating.swapaxes(1, 2).reshape(tensor.shape)
