"""config.json of the model in a GGUF file, composed from its metadata: one function for each of llama.cpp's
architectures, and a table of them."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_rope import llama3_scaling
from jittor_lora.model.families import FAMILIES

ROPE_FACTORS = "rope_freqs.weight"


def compose_config(file: GgufFile) -> dict[str, Any]:
    """config.json of the Hugging Face model that the file was converted from.

    Raises:
        UserError: another architecture, or metadata that are missing or describe another network.
    """
    family = file.metadata.get("general.architecture")
    compose = _ARCHITECTURES.get(family) if isinstance(family, str) else None
    if compose is None:
        raise UserError(f"{file.path}: general.architecture: expected one of {', '.join(_ARCHITECTURES)}; found "
                        f"{str(family)[:60]}.")
    if file.metadata.get("general.type") == "adapter":
        raise UserError(f"{file.path}: expected a model; found an adapter of llama.cpp. Name its base, and as the "
                        "adapter the folder that it was exported from.")
    metadata = _Metadata(file, family)
    config = {"architectures": [FAMILIES[family].architecture], **metadata.common(), **compose(metadata)}
    if metadata.problems:
        raise UserError(f"{file.path}: the model cannot be used:\n  " + "\n  ".join(metadata.problems))
    # A token that the file lacks does not exist: without the key it would be transformers' default.
    return {name: value for name, value in config.items() if value is not None or name.endswith("_token_id")}


class _Metadata:
    """Metadata of one architecture by key without its prefix; absent keys are None."""

    def __init__(self, file: GgufFile, family: str):
        self.file, self.family = file, family
        self.problems: list[str] = []

    def __getitem__(self, name: str) -> Any:
        value = self.file.metadata.get(f"{self.family}.{name}")
        return value.tolist() if isinstance(value, np.ndarray) else value

    def problem(self, name: str, expected: str, found: Any) -> None:
        self.problems.append(f"{name}: expected {expected}; found {str(found)[:60]}")

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


def _gpt2(metadata: _Metadata) -> dict[str, Any]:
    return {
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


def _llama_like(metadata: _Metadata) -> dict[str, Any]:
    """What all families on Llama's network have. Several networks that llama.cpp calls by these names compute something
    else."""
    sizes = metadata.needed({
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "max_position_embeddings": "context_length",
        "intermediate_size": "feed_forward_length",
    })
    family, width, heads = metadata.family, sizes["hidden_size"], sizes["num_attention_heads"]
    head_dim = metadata["attention.key_length"] or metadata["rope.dimension_count"]
    if head_dim is None and type(width) is type(heads) is int and heads and width % heads == 0:
        head_dim = width // heads
    if metadata["expert_count"]:
        metadata.problem(f"{family}.expert_count", "0 (no mixture of experts)", metadata["expert_count"])
    for name in ("attention.value_length", "rope.dimension_count"):
        if metadata[name] not in (None, head_dim):
            metadata.problem(f"{family}.{name}", f"the head size, {head_dim}", metadata[name])
    window, positions = metadata["attention.sliding_window"], sizes["max_position_embeddings"]
    if window and type(window) is type(positions) is int and window < positions:
        metadata.problem(f"{family}.attention.sliding_window", f"none, or at least {positions}", window)
    return {
        **sizes,
        "num_key_value_heads": metadata["attention.head_count_kv"],
        "head_dim": head_dim,
        "rms_norm_eps": metadata.decimal("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.decimal("rope.freq_base"),
        "rope_scaling": _rope_scaling(metadata, head_dim),
        "hidden_act": "silu",
    }


def _llama(metadata: _Metadata) -> dict[str, Any]:
    """Also Mistral, which llama.cpp calls llama."""
    return {**_llama_like(metadata), "attention_bias": "blk.0.attn_q.bias" in metadata.file.entries,
            "mlp_bias": "blk.0.ffn_up.bias" in metadata.file.entries}


def _qwen2(metadata: _Metadata) -> dict[str, Any]:
    return {**_llama_like(metadata), "use_sliding_window": False}


def _qwen3(metadata: _Metadata) -> dict[str, Any]:
    return {**_qwen2(metadata), "attention_bias": "blk.0.attn_q.bias" in metadata.file.entries}


def _rope_scaling(metadata: _Metadata, head_dim: Any) -> dict[str, Any] | None:
    kind = metadata["rope.scaling.type"] or "none"
    entry = metadata.file.entries.get(ROPE_FACTORS)
    if kind == "linear" and entry is None:
        return {"rope_type": "linear", "factor": metadata.decimal("rope.scaling.factor")}
    if kind != "none":
        metadata.problem(f"{metadata.family}.rope.scaling.type", "none or linear", kind)
    elif entry is not None:
        if not isinstance(head_dim, int) or entry.shape != (head_dim // 2,):
            metadata.problem(ROPE_FACTORS, f"a factor for each of the {head_dim} / 2 frequencies", entry.shape)
            return None
        theta = metadata.decimal("rope.freq_base")
        theta = theta if isinstance(theta, float) and 0 < theta < 1e12 else 10000.0  # checked with the configuration
        found = llama3_scaling(metadata.file[ROPE_FACTORS], head_dim, theta)
        if found is None:
            metadata.problem(ROPE_FACTORS, "the factors of Llama 3's scaled rotary positions", "others")
        return found or None
    return None


def _is_tied(file: GgufFile) -> bool:
    """Whether the head is the embedding: it is absent, or a copy (older conversions of GPT-2)."""
    if "output.weight" not in file.entries or "token_embd.weight" not in file.entries:
        return True
    head, embedding = file.entries["output.weight"], file.entries["token_embd.weight"]
    same_form = (head.kind, head.shape) == (embedding.kind, embedding.shape)
    return same_form and np.array_equal(file.raw("output.weight"), file.raw("token_embd.weight"))


_ARCHITECTURES: dict[str, Callable[[_Metadata], dict[str, Any]]] = {
    "gpt2": _gpt2, "llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3}
