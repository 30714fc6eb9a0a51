"""A reader that computes all layers in one call per step, with the backend's decoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Iterator, Optional, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.inference.reader import Turn
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.rotary import frequencies
from jittor_lora.ops.decoding import LayerWeights, LinearWeights, NetworkWeights, NormWeights, Reading, Sizes, Span


@dataclass
class _Group:
    reader: FusedReader
    prefix: Optional[Span]
    branches: list[Span]

    @property
    def start(self) -> int:
        """Tokens before the branches."""
        return 0 if self.prefix is None else self.prefix.used


class FusedReader:
    """Reads all turns together (see `Reader`), also those of groups of other adapters on the same base, each with its
    own. A row's numbers are independent of what else is read.

    It reads with the adapter as it was when the reader was built; the packed base stays with the model's matrices.
    """

    def __init__(self, model: CausalLM):
        c = model.config
        sizes = Sizes(c.layers, c.hidden_size, c.heads, c.kv_heads, c.head_dim, c.intermediate_size,
                      c.network == "llama", c.activation, c.norm_eps, model.precision)
        layers, last_norm, self._embedding, self._positions = _PARTS[c.network](model)
        self._decoder = ops.decoder(NetworkWeights(sizes, layers, last_norm, model.head(), _rotation(c)))
        self.base, self.block_rows = self._decoder.base, self._decoder.block_rows
        self.row_bytes = self._decoder.row_bytes

    def open(self, prefix: int, rooms: Sequence[int]) -> _Group:
        return _Group(self, self._decoder.new_span(prefix) if prefix else None, self._spans(rooms))

    def fork(self, group: _Group, length: int, rooms: Sequence[int]) -> _Group:
        return _Group(self, None if group.prefix is None else group.prefix.copy(length), self._spans(rooms))

    def join(self, group: _Group, rooms: Sequence[int]) -> _Group:
        return _Group(self, group.prefix, self._spans(rooms))

    def rewind(self, group: _Group, branch: int, length: int) -> None:
        group.branches[branch].used = length

    def copy(self, group: _Group, source: int, target: int) -> None:
        group.branches[target].take(group.branches[source])

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        return self._decoder.likeliest(*self._readings(turns))

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        return self._decoder.logits(*self._readings(turns))

    def every_row(self, group: _Group, tokens: Sequence[int]) -> np.ndarray:
        positions = np.arange(group.start, group.start + len(tokens), dtype=np.int32)
        readings = [Reading(group.prefix, None, 1, True, self._decoder.adapter)] * len(tokens)
        return self._decoder.logits(self._embedded(list(tokens), positions), positions, readings)

    def block(self, group: _Group, number: int) -> np.ndarray:
        return group.prefix.block(number)

    def restore(self, group: _Group, blocks: Sequence[np.ndarray], length: int) -> None:
        for number, block in enumerate(blocks):
            group.prefix.set_block(number, block)
        group.prefix.used = length

    def _spans(self, rooms: Sequence[int]) -> list[Span]:
        return [self._decoder.new_span(room) for room in rooms]

    def _readings(self, turns: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray, list[Reading]]:
        """The embedded rows, their positions, and how they are read."""
        readings, embedded, positions = [], [], []
        for turn in turns:
            group, here = turn.group, []
            adapter, start, prefix = group.reader._decoder.adapter, group.start, len(turn.prefix)
            if prefix:
                readings.append(Reading(group.prefix, None, prefix, False, adapter))
                here += range(start, start + prefix)
                start += prefix
            for branch, new in turn.branches:
                span = group.branches[branch]
                readings.append(Reading(span, group.prefix, len(new), True, adapter))
                here += range(start + span.used, start + span.used + len(new))
            embedded.append(group.reader._embedded(turn.tokens(), here))
            positions += here
        return np.concatenate(embedded), np.asarray(positions, np.int32), readings

    def _embedded(self, tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        embedded = self._embedding(tokens)
        return embedded if self._positions is None else embedded + self._positions(positions)


# --- the weights as they act, by network: layers, last norm, lookup of tokens, of positions ---------------------------


def _gpt2(model):
    network = model.transformer

    def layers() -> Iterator[LayerWeights]:
        for block in network.h:
            yield LayerWeights(_layer_norm(block.ln_1), [_linear(block.attn.c_attn)], _linear(block.attn.c_proj),
                               _layer_norm(block.ln_2), [_linear(block.mlp.c_fc)], _linear(block.mlp.c_proj),
                               scale=block.attn.scale)

    return layers(), _layer_norm(network.ln_f), network.wte.for_inference(), network.wpe.for_inference()


def _llama(model):
    network, has_norms = model.model, model.config.qk_norm

    def layers() -> Iterator[LayerWeights]:
        for block in network.layers:
            attention, mlp = block.self_attn, block.mlp
            qkv = [_linear(layer) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
            yield LayerWeights(_rms_norm(block.input_layernorm), qkv, _linear(attention.o_proj),
                               _rms_norm(block.post_attention_layernorm),
                               [_linear(mlp.gate_proj), _linear(mlp.up_proj)], _linear(mlp.down_proj),
                               *([_rms_norm(attention.q_norm), _rms_norm(attention.k_norm)] if has_norms else []))

    return layers(), _rms_norm(network.norm), network.embed_tokens.for_inference(), None


_PARTS = {"gpt2": _gpt2, "llama": _llama}


def _linear(layer) -> LinearWeights:
    weight, bias, update = layer.for_inference()
    return LinearWeights(weight, None if bias is None else bias.numpy(), update)


def _layer_norm(norm) -> NormWeights:
    return NormWeights(norm.weight.numpy(), norm.bias.numpy())


def _rms_norm(norm) -> NormWeights:
    return NormWeights(norm.weight.numpy())


def _rotation(c: ModelConfig) -> Optional[tuple[np.ndarray, np.ndarray]]:
    return None if c.network != "llama" else _tables(c.max_positions, c.head_dim, c.rope_theta, c.rope_scaling)


@functools.lru_cache(maxsize=1)
def _tables(positions: int, *settings) -> tuple[np.ndarray, np.ndarray]:
    """Of all positions, for the readers of one base: a model for long texts has 64 MiB of them."""
    cosines, sines = ops.rotary_tables(np.arange(positions), frequencies(*settings))
    return cosines.numpy(), sines.numpy()
