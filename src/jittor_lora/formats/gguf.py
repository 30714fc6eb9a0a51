"""Base models in GGUF files (llama.cpp) of the architectures gpt2 and llama, quantised or not.

Tensors get the names and orientation of the Hugging Face model that the file was converted from, and a config.json is
composed, so that the model can be saved as a Hugging Face directory.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.hugging_face import Checkpoint, shorten
from jittor_lora.model.config import ModelConfig, tensor_shapes

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
    family = file.metadata.get("general.architecture")
    compose = {"gpt2": _gpt2_config, "llama": _llama_config}.get(family) if isinstance(family, str) else None
    if compose is None:
        raise UserError(f"{file.path}: general.architecture: expected gpt2 or llama; found {str(family)[:60]}.")
    config = ModelConfig.from_hugging_face(_without_none(compose(_Metadata(file))), str(file.path))
    return Checkpoint(config=config, tensors=_GgufWeights(file, config))


class _Metadata:
    """Metadata of one architecture by key without its prefix; absent keys are None."""

    def __init__(self, file: GgufFile):
        self.file = file
        self.family = file.metadata["general.architecture"]

    def __getitem__(self, name: str) -> Any:
        value = self.file.metadata.get(f"{self.family}.{name}")
        return value.tolist() if isinstance(value, np.ndarray) else value

    def needed(self, names: Mapping[str, str]) -> dict[str, Any]:
        """The values of keys, renamed for config.json: `names` maps config.json's names to keys."""
        absent = [f"{self.family}.{key}" for key in names.values() if self[key] is None]
        if absent:
            raise UserError(f"{self.file.path}: metadata missing: {', '.join(absent)}.")
        return {name: self[key] for name, key in names.items()}

    def vocab_size(self) -> int:
        embedding = self.file.entries.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise UserError(f"{self.file.path}: tensor token_embd.weight is missing or not a matrix.")
        return embedding.shape[0]

    def common(self) -> dict[str, Any]:
        tokenizer = {name: self.file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        return {
            "model_type": self.family,
            "vocab_size": self.vocab_size(),
            "tie_word_embeddings": _is_tied(self.file),
            "bos_token_id": tokenizer["bos"],
            "eos_token_id": tokenizer["eos"],
            "torch_dtype": "float32",
        }

    def decimal(self, name: str) -> float | None:
        """A float32 as the shortest decimal number that rounds to it: 1e-05, not 9.999999747378752e-06."""
        value = self[name]
        return float(str(np.float32(value))) if isinstance(value, float) else value


def _gpt2_config(metadata: _Metadata) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        **metadata.common(),
        **metadata.needed({
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_positions": "context_length",
            "n_inner": "feed_forward_length",
        }),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": metadata.decimal("attention.layer_norm_epsilon"),
    }


def _llama_config(metadata: _Metadata) -> dict[str, Any]:
    _refuse_llama_variants(metadata)
    return {
        "architectures": ["LlamaForCausalLM"],
        **metadata.common(),
        **metadata.needed({
            "hidden_size": "embedding_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "max_position_embeddings": "context_length",
            "intermediate_size": "feed_forward_length",
        }),
        "num_key_value_heads": metadata["attention.head_count_kv"],
        "head_dim": metadata["attention.key_length"] or metadata["rope.dimension_count"],
        "rms_norm_eps": metadata.decimal("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.decimal("rope.freq_base"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def _refuse_llama_variants(metadata: _Metadata) -> None:
    """Several networks that llama.cpp calls "llama" compute something else."""
    head_dim = metadata["attention.key_length"] or metadata["rope.dimension_count"]
    problems = []
    if metadata["expert_count"]:
        problems.append(f"llama.expert_count: expected 0 (no mixture of experts); found {metadata['expert_count']}")
    if metadata["rope.scaling.type"] not in (None, "none"):
        problems.append(f"llama.rope.scaling.type: expected none; found {str(metadata['rope.scaling.type'])[:60]}")
    if "rope_freqs.weight" in metadata.file.entries:
        problems.append("rope_freqs.weight: expected plain rotary positions; found scaled ones (Llama 3.1 and later)")
    for name in ("attention.value_length", "rope.dimension_count"):
        if metadata[name] not in (None, head_dim):
            problems.append(f"llama.{name}: expected the head size, {head_dim}; found {metadata[name]}")
    if problems:
        raise UserError(f"{metadata.file.path}: the model cannot be used:\n  " + "\n  ".join(problems))


def _is_tied(file: GgufFile) -> bool:
    """Whether the head is the embedding: it is absent, or a copy (older conversions of GPT-2)."""
    if "output.weight" not in file.entries or "token_embd.weight" not in file.entries:
        return True
    head, embedding = file.entries["output.weight"], file.entries["token_embd.weight"]
    same_form = (head.kind, head.shape) == (embedding.kind, embedding.shape)
    return same_form and np.array_equal(file.raw("output.weight"), file.raw("token_embd.weight"))


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
        problems += [f"{stored}: unexpected, of shape {entry.shape}"
                     for stored, entry in file.entries.items() if stored not in used]
        if problems:
            raise UserError(f"{file.path}: the tensors are not those of a {config.family} model:\n  "
                            + shorten(problems, 20, "\n  "))

    def __getitem__(self, name: str) -> np.ndarray:
        stored, restore = self._places[name]
        return restore(self._file[stored])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _place(name: str, config: ModelConfig) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """llama.cpp's name of a tensor, and the function that restores Hugging Face's tensor from it."""
    if name == "lm_head.weight":
        return "output.weight", _unchanged
    whole, block = (_GPT2, _GPT2_BLOCK) if config.family == "gpt2" else (_LLAMA, _LLAMA_BLOCK)
    parts = name.split(".")[1:]  # without "transformer." or "model."
    module, kind = ".".join(parts[:-1]), parts[-1]
    if module in whole:
        return f"{whole[module]}.{kind}", _unchanged
    module = ".".join(parts[2:-1])  # without "h.0." or "layers.0."
    restore = _unchanged
    if config.family == "gpt2" and kind == "weight" and not module.startswith("ln_"):
        restore = _transposed
    elif module == "self_attn.q_proj":
        restore = _Unpermuted(config.heads)
    elif module == "self_attn.k_proj":
        restore = _Unpermuted(config.kv_heads)
    return f"blk.{parts[1]}.{block[module]}.{kind}", restore


def _unchanged(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _transposed(tensor: np.ndarray) -> np.ndarray:
    """GGUF's (out, in) to the (in, out) of GPT-2's Conv1D."""
    return np.ascontiguousarray(tensor.T)


class _Unpermuted:
    """Undo llama.cpp's order of query and key rows.

    Its rotary embedding rotates neighbouring rows, Hugging Face's the rows i and i + head_dim / 2, so its conversion
    interleaves the two halves of each head (`permute` in convert_hf_to_gguf.py).
    """

    def __init__(self, heads: int):
        self.heads = heads

    def __call__(self, tensor: np.ndarray) -> np.ndarray:
        rows, columns = tensor.shape
        alternating = tensor.reshape(self.heads, rows // self.heads // 2, 2, columns)
        return alternating.swapaxes(1, 2).reshape(rows, columns)


def _without_none(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}
