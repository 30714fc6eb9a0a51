"""The family and sizes of a base model, read from Hugging Face's config.json and checked.

A missing key has the default of transformers. A setting that changes the model's results and is not implemented here is
refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jittor_lora.errors import UserError
from jittor_lora.model.families import FAMILIES
from jittor_lora.model.families.fields import Fields, show
from jittor_lora.model.rotary import RopeScaling


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and settings of one base model.

    `eos_token_ids` and `bos_token_id` leave out ids outside the vocabulary: transformers writes GPT-2's 50256
    for models with a small one too.
    """

    family: str  # a key of FAMILIES
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
    activation: str  # a name in ops, such as "gelu_tanh"
    source: dict = field(compare=False, repr=False)  # config.json as read
    rope_scaling: RopeScaling | None = None
    biased: tuple[str, ...] = ()  # the projections with a bias, where not all have one
    qk_norm: bool = False  # are queries and keys normalised head by head?
    scores_scaled: bool = True  # attention's, by 1 / √head_dim
    scores_by_layer: bool = False  # also by 1 / layer, counted from 1
    notes: tuple[str, ...] = field(default=(), compare=False)  # on limits below those of the file

    @property
    def eos_token_id(self) -> int | None:
        """The first end-of-text token, None if there are none."""
        return next(iter(self.eos_token_ids), None)

    @property
    def network(self) -> str:
        """Which network computes it, see `Family`."""
        return FAMILIES[self.family].network

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
        name = config.get("model_type")
        family = FAMILIES.get(name) if isinstance(name, str) else None
        if family is None:
            titles = "; ".join(f"{name} ({family.title})" for name, family in FAMILIES.items())
            raise UserError(f"{where}: model_type: expected one of {titles}; found {show(name)}.")
        fields = Fields(config)
        values = family.read(fields)
        if fields.problems:
            raise UserError(f"{where}: the model it describes cannot be used:\n  " + "\n  ".join(fields.problems))
        return cls(family=name, source=config, **values)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model, as in the state dict of transformers' class with the head.

    GPT-2's projections are Conv1D weights, (in, out); the others' are Linear weights, (out, in). `lm_head.weight`
    exists only if it is not tied to the embedding.
    """
    shapes = FAMILIES[config.family].shapes(config)
    if not config.tied_head:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def is_conv1d(config: ModelConfig, name: str) -> bool:
    """Is this tensor one of GPT-2's Conv1D weights, which are stored (in, out)?"""
    return config.network == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
