"""The family and sizes of a base model, read from Hugging Face's config.json and checked.

A missing key has the default of transformers (`GPT2Config`, `LlamaConfig`). A setting that changes the model's results
and is not implemented here is refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jittor_lora.errors import UserError

# transformers' activation names → the function they compute
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
    "tanh": "tanh",
}

# Upper limits far above any published model of these families: a larger number is a damaged or hostile file.
_MOST_VOCABULARY, _MOST_WIDTH, _MOST_LAYERS, _MOST_HEADS, _MOST_POSITIONS = 1 << 24, 1 << 18, 1024, 4096, 1 << 24


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and settings of one base model.

    `eos_token_ids` and `bos_token_id` leave out ids outside the vocabulary: transformers writes GPT-2's 50256
    for models with a small one too.
    """

    family: str  # "gpt2" or "llama"
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    tied_head: bool
    rope_theta: float  # 0.0 for GPT-2, whose positions are learned
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    activation: str  # a value of _ACTIVATIONS
    source: dict = field(compare=False, repr=False)  # config.json as read
    scores_scaled: bool = True  # attention's, by 1 / √head_dim
    scores_by_layer: bool = False  # also by 1 / layer, counted from 1

    @property
    def eos_token_id(self) -> int | None:
        """The first end-of-text token, None if there are none."""
        return next(iter(self.eos_token_ids), None)

    def attention_scale(self, layer: int) -> float:
        """What attention multiplies its scores by in a layer, counted from 0."""
        return (self.head_dim**-0.5 if self.scores_scaled else 1.0) / (layer + 1 if self.scores_by_layer else 1)

    @classmethod
    def from_hugging_face(cls, config: dict, where: str) -> ModelConfig:
        """Read the dictionary of a config.json; `where` names it in errors.

        Raises:
            UserError: another architecture, or settings that are missing, malformed, absurd or not supported; all are
                listed.
        """
        family = config.get("model_type")
        reader = _READERS.get(family) if isinstance(family, str) else None
        if reader is None:
            raise UserError(
                f"{where}: model_type: expected one of {', '.join(_READERS)}; found {_show(family)}. "
                "Supported are GPT-2 (also DistilGPT2) and Llama-like models without bias (also SmolLM2)."
            )
        fields = _Fields(config)
        values = reader(fields)
        if fields.problems:
            raise UserError(f"{where}: the model it describes cannot be used:\n  " + "\n  ".join(fields.problems))
        return cls(family=family, source=config, **values)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model, as in the state dict of GPT2LMHeadModel or LlamaForCausalLM.

    GPT-2's projections are Conv1D weights, (in, out); Llama's are Linear weights, (out, in). `lm_head.weight`
    exists only if it is not tied to the embedding.
    """
    shapes = _gpt2_shapes(config) if config.family == "gpt2" else _llama_shapes(config)
    if not config.tied_head:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


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


def _llama_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    block = {
        "self_attn.q_proj.weight": (queries, d),
        "self_attn.k_proj.weight": (keys, d),
        "self_attn.v_proj.weight": (keys, d),
        "self_attn.o_proj.weight": (d, queries),
        "mlp.gate_proj.weight": (inner, d),
        "mlp.up_proj.weight": (inner, d),
        "mlp.down_proj.weight": (d, inner),
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
    }
    for layer in range(config.layers):
        shapes.update((f"model.layers.{layer}.{name}", shape) for name, shape in block.items())
    shapes["model.norm.weight"] = (d,)
    return shapes


class _Fields:
    """Typed access to one config.json that collects all problems and continues with defaults."""

    def __init__(self, config: dict):
        self.config = config
        self.problems: list[str] = []

    def problem(self, name: str, expected: str, found: Any) -> None:
        self.problems.append(f"{name}: expected {expected}; found {_show(found)}")

    def integer(self, name: str, default: int | None, most: int, alias: str = "") -> int:
        """A whole number from 1 to `most`. An absent or null value is `default`; `alias` is a second accepted key."""
        if name not in self.config and alias in self.config:
            name = alias
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            self.problem(name, f"a whole number from 1 to {most}", value)
            return default or 1
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number strictly between the limits."""
        return self.number_value(name, self.config.get(name, default), default, low, high)

    def number_value(self, name: str, value: Any, default: float, low: float, high: float) -> float:
        if type(value) not in (int, float) or not low < value < high:
            self.problem(name, f"a number above {low:g} and below {high:g}", value)
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name, default)
        if type(value) is not bool:
            self.problem(name, "true or false", value)
            return default
        return value

    def only(self, name: str, supported: bool, reason: str) -> None:
        """A flag of which only one value, transformers' default, is implemented."""
        if self.config.get(name, supported) is not supported:
            self.problem(name, f"{str(supported).lower()} ({reason})", self.config[name])

    def absent(self, name: str, reason: str) -> None:
        if self.config.get(name) is not None:
            self.problem(name, f"none ({reason})", self.config[name])

    def activation(self, name: str, default: str, supported: tuple[str, ...]) -> str:
        value = self.config.get(name, default)
        activation = _ACTIVATIONS.get(value) if isinstance(value, str) else None
        if activation not in supported:
            names = [known for known, meaning in _ACTIVATIONS.items() if meaning in supported]
            self.problem(name, f"one of {', '.join(names)}", value)
            return supported[0]
        return activation

    def tokens(self, name: str, default: int | None, vocab_size: int) -> tuple[int, ...]:
        """Token ids within the vocabulary."""
        found = token_ids(self.config.get(name, default))
        if found is None:
            self.problem(name, "a token id, a list of them, or null", self.config[name])
        return tuple(token for token in found or () if 0 <= token < vocab_size)


def token_ids(value: Any) -> list[int] | None:
    """The ids in `eos_token_id` and similar: of a number, a list of numbers or null; None for anything else."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return ids if all(type(token) is int for token in ids) else None


def _read_gpt2(fields: _Fields) -> dict[str, Any]:
    vocab_size = fields.integer("vocab_size", 50257, _MOST_VOCABULARY)
    hidden_size = fields.integer("n_embd", 768, _MOST_WIDTH, alias="hidden_size")
    heads = fields.integer("n_head", 12, _MOST_HEADS, alias="num_attention_heads")
    if hidden_size % heads:
        fields.problem("n_embd", f"a multiple of n_head ({heads})", hidden_size)
    fields.only("add_cross_attention", False, "a decoder of another model's states is not supported")
    fields.absent("quantization_config", "weights must be float32, float16 or bfloat16")
    # reorder_and_upcast_attn asks for attention in float32, which is always used here.
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "layers": fields.integer("n_layer", 12, _MOST_LAYERS, alias="num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden_size // heads,
        "intermediate_size": fields.integer("n_inner", 4 * hidden_size, 4 * _MOST_WIDTH),
        "max_positions": fields.integer("n_positions", 1024, _MOST_POSITIONS, alias="max_position_embeddings"),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5, 0, 1),
        "tied_head": fields.flag("tie_word_embeddings", True),
        "rope_theta": 0.0,
        "eos_token_ids": fields.tokens("eos_token_id", 50256, vocab_size),
        "bos_token_id": next(iter(fields.tokens("bos_token_id", 50256, vocab_size)), None),
        "activation": fields.activation("activation_function", "gelu_new", tuple(dict.fromkeys(_ACTIVATIONS.values()))),
        "scores_scaled": fields.flag("scale_attn_weights", True),
        "scores_by_layer": fields.flag("scale_attn_by_inverse_layer_idx", False),
    }


def _read_llama(fields: _Fields) -> dict[str, Any]:
    vocab_size = fields.integer("vocab_size", 32000, _MOST_VOCABULARY)
    hidden_size = fields.integer("hidden_size", 4096, _MOST_WIDTH)
    heads = fields.integer("num_attention_heads", 32, _MOST_HEADS)
    kv_heads = fields.integer("num_key_value_heads", heads, _MOST_HEADS)
    if heads % kv_heads:
        fields.problem("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv_heads)
    if fields.config.get("head_dim") is None and hidden_size % heads:
        fields.problem("hidden_size", f"a multiple of num_attention_heads ({heads})", hidden_size)
    head_dim = fields.integer("head_dim", max(1, hidden_size // heads), _MOST_WIDTH)
    if head_dim % 2:
        fields.problem("head_dim", "an even number (rotary positions rotate pairs)", head_dim)
    fields.only("attention_bias", False, "biased attention projections are not supported")
    fields.only("mlp_bias", False, "biased MLP projections are not supported")
    fields.absent("quantization_config", "weights must be float32, float16 or bfloat16")
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "layers": fields.integer("num_hidden_layers", 32, _MOST_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": fields.integer("intermediate_size", 11008, 4 * _MOST_WIDTH),
        "max_positions": fields.integer("max_position_embeddings", 2048, _MOST_POSITIONS),
        "norm_eps": fields.number("rms_norm_eps", 1e-6, 0, 1),
        "tied_head": fields.flag("tie_word_embeddings", False),
        "rope_theta": _rope_theta(fields),
        "eos_token_ids": fields.tokens("eos_token_id", 2, vocab_size),
        "bos_token_id": next(iter(fields.tokens("bos_token_id", 1, vocab_size)), None),
        "activation": fields.activation("hidden_act", "silu", ("silu",)),
    }


def _rope_theta(fields: _Fields) -> float:
    """The rotary base: `rope_theta`, or transformers 5's dictionary `rope_parameters`, which takes precedence."""
    name, theta = "rope_theta", fields.config.get("rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = fields.config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            fields.problem(key, "a dictionary or null", rope)
            continue
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            fields.problem(key, "plain rotary positions (rope_type default, no scaling)", rope)
        elif "rope_theta" in rope:
            name, theta = f"{key}.rope_theta", rope["rope_theta"]
    return fields.number_value(name, theta, 10000.0, 0, 1e12)


def _show(value: Any) -> str:
    """One short line for an arbitrary JSON value."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_READERS = {"gpt2": _read_gpt2, "llama": _read_llama}
