"""The kinds of layers that can be adapted: one table of what stands in for each, and its update."""

from __future__ import annotations

from typing import NamedTuple, Optional

from jittor_lora.lora.adapted import AdaptedModule
from jittor_lora.lora.attention import Attention, AttentionUpdate
from jittor_lora.lora.convolution import Convolution, ConvolutionUpdate
from jittor_lora.lora.embedding import EmbeddingUpdate, LoraEmbedding
from jittor_lora.lora.layer import LoraLinear, Update
from jittor_lora.lora.layers import AnyEmbedding, AnyLinear, IndexedUpdate, Saved
from jittor_lora.model.modules import Embedding, Linear
from jittor_lora.system.runtime import jt


class Kind(NamedTuple):
    """
    Attributes:
        base: the class of the frozen layer.
        adapted: the module that stands in for it.
        update: what an adapter adds to it; made of (base, config, name, seed, with_bias, values).
    """

    base: type[jt.Module]
    adapted: type[AdaptedModule]
    update: type[jt.Module]

    @property
    def is_linear(self) -> bool:
        """Does "all-linear" select it?"""
        return self.update is Update


KINDS = (
    Kind(Linear, LoraLinear, Update),
    Kind(Embedding, LoraEmbedding, EmbeddingUpdate),
    Kind(jt.nn.Linear, AnyLinear, Update),
    Kind(jt.nn.Embedding, AnyEmbedding, IndexedUpdate),
    Kind(jt.nn.Conv1d, Convolution, ConvolutionUpdate),
    Kind(jt.nn.Conv2d, Convolution, ConvolutionUpdate),
    Kind(jt.nn.Conv3d, Convolution, ConvolutionUpdate),
    Kind(jt.attention.MultiheadAttention, Attention, AttentionUpdate),
)
SUPPORTED = "Linear, Conv1d, Conv2d, Conv3d, Embedding, MultiheadAttention"


def kind_of(module: jt.Module) -> Optional[Kind]:
    """The line of the table for a layer, or None. A subclass that computes something else is not of its kind."""
    return next((kind for kind in KINDS if isinstance(module, kind.base)
                 and type(module).execute is kind.base.execute), None)


def stand_in(module: jt.Module) -> type[AdaptedModule]:
    """The class of what stands in for a module, which may be one that adapters train whole."""
    kind = kind_of(module)
    if kind is not None:
        return kind.adapted
    return AdaptedModule if type(module).__module__.startswith("jittor_lora.") else Saved
