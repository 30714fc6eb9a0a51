"""Whole models for programs other than transformers: llama.cpp, and the project GPT2_LoRA_Jittor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Iterator

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_folder, atomic_write
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.gguf_metadata import computed_otherwise
from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.formats.reference_npz import write_npz
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.model.config import ModelConfig
from jittor_lora.session import load
from jittor_lora.tasks.merge import merged_checkpoint

# Keys of config.json that convert_hf_to_gguf.py reads without a default.
_GPT2_NAMES = {"n_layer": "layers", "n_ctx": "max_positions", "n_positions": "max_positions", "n_embd": "hidden_size",
               "n_head": "heads", "layer_norm_epsilon": "norm_eps", "vocab_size": "vocab_size"}
_LLAMA_NAMES = {"num_hidden_layers": "layers", "max_position_embeddings": "max_positions",
                "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_attention_heads": "heads",
                "num_key_value_heads": "kv_heads", "head_dim": "head_dim", "rms_norm_eps": "norm_eps",
                "rope_theta": "rope_theta", "vocab_size": "vocab_size"}


def export(form: str, base: str, adapter: Path | AdapterSource | None, output: Path,
           tolerance: float = 1e-3, base_precision: str = "auto") -> float | None:
    """Write the base, with the adapter's update added in if there is one, in float32.

    Args:
        form: "gguf-ready", a Hugging Face directory with everything that llama.cpp's convert_hf_to_gguf.py reads, or
            "npz", the `gpt2_weights.npz` from which GPT2_LoRA_Jittor loads its base.
        tolerance: largest allowed difference between a logit of the merged model and of the base with the adapter.

    Returns: that difference, measured on a probe text; None without an adapter.

    Raises:
        UserError: base and adapter do not fit, the difference exceeds `tolerance`, or the other program cannot read the
            model or computes it differently; nothing is written then.
    """
    session = load(base, adapter, base_precision=base_precision)
    difference = session.check_merge(tolerance) if adapter is not None else None
    checkpoint = merged_checkpoint(session)
    problems = list((_gguf_problems if form == "gguf-ready" else _npz_problems)(checkpoint.config, session.tokenizer))
    if problems:
        raise UserError(f"The model cannot be exported as {form}:\n  " + "\n  ".join(problems))
    if form == "npz":
        with atomic_write(output, "wb") as stream:
            write_npz(stream, checkpoint.tensors)
    else:
        with atomic_folder(output) as folder:
            write_checkpoint(folder, _gguf_ready(checkpoint))
            session.save_tokenizer(folder)
    return difference


def _gguf_problems(config: ModelConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """What llama.cpp's graph of this family, or its converter, does not support."""
    yield from computed_otherwise(config)
    if config.family == "gpt2" and config.intermediate_size != 4 * config.hidden_size:
        yield f"n_inner: the converter writes 4 n_embd = {4 * config.hidden_size}, found {config.intermediate_size}"
    if tokenizer.algorithm != "BPE":
        yield f"tokenizer: expected byte-level BPE, found {tokenizer.algorithm}"


def _npz_problems(config: ModelConfig, _: Tokenizer) -> Iterator[str]:
    if config.family != "gpt2":
        yield f"model_type: GPT2_LoRA_Jittor has only GPT-2, found {config.family}"
        return
    if config.scores_by_layer or not config.scores_scaled:
        yield ("scale_attn_weights and scale_attn_by_inverse_layer_idx: GPT2_LoRA_Jittor divides attention's scores by "
               "√head_dim alone, found " + str([config.scores_scaled, config.scores_by_layer]).lower())
    if not config.tied_head:
        yield "tie_word_embeddings: GPT2_LoRA_Jittor uses the embedding as its head, found a separate head"
    if config.intermediate_size != 4 * config.hidden_size:
        yield f"n_inner: GPT2_LoRA_Jittor has 4 n_embd = {4 * config.hidden_size}, found {config.intermediate_size}"


def _gguf_ready(checkpoint: Checkpoint) -> Checkpoint:
    """With every setting that the converter looks for spelled out, and a generation_config.json."""
    config = checkpoint.config
    names = _GPT2_NAMES if config.family == "gpt2" else _LLAMA_NAMES
    tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id")
              if getattr(config, name) is not None}
    source = {**config.source, **tokens, **{name: getattr(config, field) for name, field in names.items()},
              "torch_dtype": "float32"}
    generation = checkpoint.generation_config or {"_from_model_config": True, **tokens}
    return Checkpoint(replace(config, source=source), checkpoint.tensors, generation)
