"""GPT-2 (Radford et al. 2019), also DistilGPT2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jittor_lora.model.families.family import Family
from jittor_lora.model.families.fields import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_VOCABULARY,
    MOST_WIDTH,
    Fields,
)

if TYPE_CHECKING:
    from jittor_lora.model.config import ModelConfig

_ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu", "silu", "quick_gelu", "tanh")


def _read_gpt2(fields: Fields) -> dict[str, Any]:
    vocab_size = fields.integer("vocab_size", 50257, MOST_VOCABULARY)
    hidden_size = fields.integer("n_embd", 768, MOST_WIDTH, alias="hidden_size")
    heads = fields.integer("n_head", 12, MOST_HEADS, alias="num_attention_heads")
    if hidden_size % heads:
        fields.problem("n_embd", f"a multiple of n_head ({heads})", hidden_size)
    fields.only("add_cross_attention", False, "a decoder of another model's states is not supported")
    fields.absent("quantization_config", "weights must be float32, float16 or bfloat16")
    # reorder_and_upcast_attn asks for attention in float32, which is always used here.
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "layers": fields.integer("n_layer", 12, MOST_LAYERS, alias="num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden_size // heads,
        "intermediate_size": fields.integer("n_inner", 4 * hidden_size, 4 * MOST_WIDTH),
        "max_positions": fields.integer("n_positions", 1024, MOST_POSITIONS, alias="max_position_embeddings"),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5, 0, 1),
        "tied_head": fields.flag("tie_word_embeddings", True),
        "rope_theta": 0.0,
        "eos_token_ids": fields.tokens("eos_token_id", 50256, vocab_size),
        "bos_token_id": next(iter(fields.tokens("bos_token_id", 50256, vocab_size)), None),
        "activation": fields.activation("activation_function", "gelu_new", _ACTIVATIONS),
        "scores_scaled": fields.flag("scale_attn_weights", True),
        "scores_by_layer": fields.flag("scale_attn_by_inverse_layer_idx", False),
    }


def _gpt2_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.vocab_size, d),
        "transformer.wpe.weight": (config.max_positions, d),
    }
    block = {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d),
        "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d),
        "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, d),
        "mlp.c_proj.bias": (d,),
    }
    for layer in range(config.layers):
        shapes.update((f"transformer.h.{layer}.{name}", shape) for name, shape in block.items())
    shapes["transformer.ln_f.weight"] = (d,)
    shapes["transformer.ln_f.bias"] = (d,)
    return shapes


FAMILY = Family(
    title="GPT-2, DistilGPT2",
    read=_read_gpt2,
    shapes=_gpt2_shapes,
    architecture="GPT2LMHeadModel",
    body="transformer",
    embedding="wte",
    network="gpt2",
    targets=("c_attn", "c_proj", "c_fc"),
)
