"""Llama (Touvron et al. 2023; Dubey et al. 2024), also SmolLM2; and what the families on its network share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from jittor_lora.model.families.family import Family
from jittor_lora.model.families.fields import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_VOCABULARY,
    MOST_WIDTH,
    Fields,
)
from jittor_lora.model.families.rope import read_rope

if TYPE_CHECKING:
    from jittor_lora.model.config import ModelConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Defaults(NamedTuple):
    """transformers' values of keys that a config.json lacks."""

    vocab_size: int = 32000
    intermediate_size: int = 11008
    max_positions: int = 2048
    kv_heads: Optional[int] = None  # as many as heads
    head_dim: Optional[int] = None  # hidden_size / heads
    bos: Optional[int] = 1
    eos: Optional[int] = 2


def read_sizes(fields: Fields, defaults: Defaults) -> dict[str, Any]:
    """What all families on this network read alike."""
    vocab_size = fields.integer("vocab_size", defaults.vocab_size, MOST_VOCABULARY)
    hidden_size = fields.integer("hidden_size", 4096, MOST_WIDTH)
    heads = fields.integer("num_attention_heads", 32, MOST_HEADS)
    # Null means one per head, whatever the default of an absent key.
    absent = defaults.kv_heads is not None and "num_key_value_heads" not in fields.config
    kv_heads = fields.integer("num_key_value_heads", defaults.kv_heads if absent else heads, MOST_HEADS)
    if heads % kv_heads:
        fields.problem("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv_heads)
    if fields.config.get("head_dim") is None and defaults.head_dim is None and hidden_size % heads:
        fields.problem("hidden_size", f"a multiple of num_attention_heads ({heads})", hidden_size)
    head_dim = fields.integer("head_dim", defaults.head_dim or max(1, hidden_size // heads), MOST_WIDTH)
    if head_dim % 2:
        fields.problem("head_dim", "an even number (rotary positions rotate pairs)", head_dim)
    fields.absent("quantization_config", "weights must be float32, float16 or bfloat16")
    positions = fields.integer("max_position_embeddings", defaults.max_positions, MOST_POSITIONS)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "layers": fields.integer("num_hidden_layers", 32, MOST_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": fields.integer("intermediate_size", defaults.intermediate_size, 4 * MOST_WIDTH),
        "max_positions": positions,
        "norm_eps": fields.number("rms_norm_eps", 1e-6, 0, 1),
        "tied_head": fields.flag("tie_word_embeddings", False),
        **read_rope(fields, positions),
        "eos_token_ids": fields.tokens("eos_token_id", defaults.eos, vocab_size),
        "bos_token_id": next(iter(fields.tokens("bos_token_id", defaults.bos, vocab_size)), None),
        "activation": fields.activation("hidden_act", "silu", ("silu",)),
    }


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    block: dict[str, tuple[int, ...]] = {}
    for module, shape in {
        "self_attn.q_proj": (queries, d),
        "self_attn.k_proj": (keys, d),
        "self_attn.v_proj": (keys, d),
        "self_attn.o_proj": (d, queries),
        "mlp.gate_proj": (inner, d),
        "mlp.up_proj": (inner, d),
        "mlp.down_proj": (d, inner),
    }.items():
        block[f"{module}.weight"] = shape
        if module.split(".")[1] in config.biased:
            block[f"{module}.bias"] = shape[:1]
    if config.qk_norm:
        block["self_attn.q_norm.weight"] = block["self_attn.k_norm.weight"] = (config.head_dim,)
    block["input_layernorm.weight"] = block["post_attention_layernorm.weight"] = (d,)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    for layer in range(config.layers):
        found.update((f"model.layers.{layer}.{name}", shape) for name, shape in block.items())
    found["model.norm.weight"] = (d,)
    return found


def _read(fields: Fields) -> dict[str, Any]:
    biased = (ATTENTION if fields.flag("attention_bias", False) else ()) + (
        MLP if fields.flag("mlp_bias", False) else ())
    return {**read_sizes(fields, Defaults()), "biased": biased}


FAMILY = Family(
    title="Llama, SmolLM2",
    read=_read,
    shapes=shapes,
    architecture="LlamaForCausalLM",
    body="model",
    embedding="embed_tokens",
    network="llama",
    targets=ATTENTION + MLP,
)
