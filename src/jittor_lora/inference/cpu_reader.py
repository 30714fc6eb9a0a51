"""Reading prompts and new tokens of several groups of branches at a time, all layers in one call on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.inference.reader import PortableReader, Turn
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.ops.cpu.decode import LayerWeights, LinearWeights, Network, NormWeights, Reading, Sizes, Span


def reader_of(model: CausalLM):
    """What reads texts with this model fastest here."""
    return Decoder(model) if ops.has_kernel("decoding") else PortableReader(model)


@dataclass
class _Group:
    prefix: Optional[Span]
    branches: list[Span]

    @property
    def start(self) -> int:
        """Tokens before the branches."""
        return 0 if self.prefix is None else self.prefix.used


class Decoder:
    """Reads all turns together. A row's numbers do not depend on what else is read.

    It has the adapter as it was when it was made; the packed base is kept with the model's matrices.
    """

    def __init__(self, model: CausalLM):
        c = model.config
        bf16 = model.precision == "bf16"
        sizes = Sizes(c.hidden_size, c.heads, c.kv_heads, c.head_dim, c.intermediate_size, c.family == "llama",
                      c.activation, c.norm_eps, bf16)
        layers, last_norm, self._embedding, self._positions = _PARTS[c.family](model)
        head = model.head()
        self._network = Network(sizes, layers, last_norm, LinearWeights(head.panels(), head.shape[0]), head.screen,
                                _rotation(c))

    def open(self, prefix: int, rooms: Sequence[int]) -> _Group:
        """Room for a prefix of `prefix` tokens, and `rooms[i]` tokens of branch i."""
        return _Group(self._network.new_span(prefix) if prefix else None, [self._network.new_span(r) for r in rooms])

    def fork(self, group: _Group, length: int, rooms: Sequence[int]) -> _Group:
        """A group with room for as long a prefix; of that it has the first `length` tokens that this one has read."""
        prefix = None if group.prefix is None else group.prefix.copy(length)
        return _Group(prefix, [self._network.new_span(room) for room in rooms])

    def rewind(self, group: _Group, branch: int, length: int) -> None:
        """Forget all but the first `length` tokens of a branch."""
        group.branches[branch].used = length

    def copy(self, group: _Group, source: int, target: int) -> None:
        """Let a branch have read what another one has; their rooms are equal."""
        group.branches[target].take(group.branches[source])

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        """The token with the largest logit after each branch of each turn, (branches,).

        Raises:
            UserError: logits that are not finite.
        """
        return self._network.likeliest(*self._readings(turns))

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        """The logits after each branch of each turn, (branches, V) float32.

        Raises:
            UserError: they are not finite.
        """
        return self._network.logits(*self._readings(turns))

    def _readings(self, turns: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray, list[Reading]]:
        readings, tokens, positions = [], [], []
        for turn in turns:
            tokens += turn.tokens()
            start, prefix = turn.group.start, len(turn.prefix)
            if prefix:
                readings.append(Reading(turn.group.prefix, None, prefix, False))
                positions += range(start, start + prefix)
                start += prefix
            for branch, new in turn.branches:
                span = turn.group.branches[branch]
                readings.append(Reading(span, turn.group.prefix, len(new), True))
                positions += range(start + span.used, start + span.used + len(new))
        embedded = self._embedding[tokens]
        if self._positions is not None:
            embedded = embedded + self._positions[positions]
        return embedded, np.asarray(positions, np.int32), readings


def _linear(layer) -> LinearWeights:
    weight, bias, update = layer.for_inference()
    return LinearWeights(weight.panels(), weight.shape[0], None if bias is None else bias.numpy(), update)


def _gpt2(model):
    network = model.transformer
    layers = [LayerWeights(_layer_norm(block.ln_1), [_linear(block.attn.c_attn)], _linear(block.attn.c_proj),
                           _layer_norm(block.ln_2), [_linear(block.mlp.c_fc)], _linear(block.mlp.c_proj))
              for block in network.h]
    return layers, _layer_norm(network.ln_f), network.wte.table, network.wpe.table


def _llama(model):
    network, layers = model.model, []
    for block in network.layers:
        attention, mlp = block.self_attn, block.mlp
        layers.append(LayerWeights(
            NormWeights(block.input_layernorm.weight.numpy()),
            [_linear(layer) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)],
            _linear(attention.o_proj), NormWeights(block.post_attention_layernorm.weight.numpy()),
            [_linear(mlp.gate_proj), _linear(mlp.up_proj)], _linear(mlp.down_proj)))
    return layers, NormWeights(network.norm.weight.numpy()), network.embed_tokens.table, None


_PARTS = {"gpt2": _gpt2, "llama": _llama}


def _layer_norm(norm) -> NormWeights:
    return NormWeights(norm.weight.numpy(), norm.bias.numpy())


def _rotation(config: ModelConfig) -> Optional[tuple[np.ndarray, np.ndarray]]:
    if config.family != "llama":
        return None
    cosines, sines = ops.rotary_tables(np.arange(config.max_positions), config.head_dim, config.rope_theta)
    return cosines.numpy(), sines.numpy()
