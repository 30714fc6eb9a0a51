"""Decoding with a whole network in one call: what a backend's decoder is built from, and what it offers."""

from __future__ import annotations

from typing import Any, Hashable, Iterable, Iterator, NamedTuple, Optional, Protocol, Sequence, Union

import numpy as np

from jittor_lora.ops.matrix import Matrix, TrainedMatrix

NOT_FINITE = ("The model gives numbers that are not finite: weights of the base or of the adapter are damaged. "
              "Download or train them again.")


class LinearWeights(NamedTuple):
    """A linear layer: its weight (out, in), bias (out,), and the low-rank update: A (r, in), scaling · B (out, r)."""

    weight: Union[Matrix, TrainedMatrix]
    bias: Optional[np.ndarray] = None
    update: Optional[tuple[np.ndarray, np.ndarray]] = None


class NormWeights(NamedTuple):
    weight: np.ndarray
    bias: Optional[np.ndarray] = None


class LayerWeights(NamedTuple):
    """One block. `qkv` is one fused layer or three; `up` is one layer, or the gate and the layer it gates. `q_norm` and
    `k_norm`, of each head before rotary positions, are RMS norms with a weight (head_dim,). `scale` multiplies
    attention's scores; None for 1 / √head_dim."""

    attention_norm: NormWeights
    qkv: Sequence[LinearWeights]
    out: LinearWeights
    mlp_norm: NormWeights
    up: Sequence[LinearWeights]
    down: LinearWeights
    q_norm: Optional[NormWeights] = None
    k_norm: Optional[NormWeights] = None
    scale: Optional[float] = None


class Sizes(NamedTuple):
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    rms_norm: bool  # else layer norm
    activation: str
    norm_eps: float
    precision: str  # of products with the weights


class NetworkWeights(NamedTuple):
    """A network between the embedded rows and the logits.

    Args:
        layers: consumed once, so that a weight computed for this purpose can be freed once it is packed.
        head: (V, width).
        rotation: cosines and sines (positions, head_dim / 2) of rotary positions, or None.
    """

    sizes: Sizes
    layers: Iterable[LayerWeights]
    last_norm: NormWeights
    head: Union[Matrix, TrainedMatrix]
    rotation: Optional[tuple[np.ndarray, np.ndarray]] = None


class Span(Protocol):
    """Room for the keys and values of some rows, of which `used` are filled."""

    used: int

    def copy(self, used: int) -> Span:
        """Another span with as much room, and the first `used` rows of this one."""

    def take(self, other: Span) -> None:
        """Become a copy of another span with as much room."""

    def block(self, number: int) -> np.ndarray:
        """A copy of the keys and values of the decoder's `block_rows` rows from number · block_rows on."""

    def set_block(self, number: int, block: np.ndarray) -> None:
        """Put one in its place again, in this span or another of the decoder."""


class Reading(NamedTuple):
    """Rows to read one after the other: each sees the prefix and the rows before it in their own span.

    Args:
        own: where their keys and values go.
        prefix: read earlier or in the same call; None without one.
        rows: their number.
        wanted: is the token after the last of them asked for?
        adapter: whose low-rank updates act on them, a decoder's `adapter`.
    """

    own: Span
    prefix: Optional[Span]
    rows: int
    wanted: bool
    adapter: Any


class Decoder(Protocol):
    """A network prepared for decoding, with the weights that it was built from.

    Attributes:
        adapter: its low-rank updates, for readings of this decoder and of those with an equal base; None without any.
        base: equal where everything but the low-rank updates is.
        block_rows: rows per block of a span.
        row_bytes: of the keys and values of a row.
    """

    adapter: Any
    base: Hashable
    block_rows: int
    row_bytes: int

    def new_span(self, rows: int) -> Span:
        """Room for the keys and values of `rows` rows."""

    def likeliest(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        """The token with the largest logit after each wanted reading, the first of equal ones: int32.

        Args:
            embedded: (N, width) float32, the embedded rows, reading after reading.
            positions: (N,) int32.

        Raises:
            UserError: the logits are not finite.
        """

    def logits(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        """As `likeliest`, all logits: (wanted readings, V) float32."""


def in_parts(readings: Sequence[Reading], most: int) -> Iterator[list[Reading]]:
    """The readings in parts of at most `most` rows; a longer reading is split."""
    part, room = [], most
    for reading in readings:
        left = reading.rows
        while left:
            rows = min(left, room)
            left, room = left - rows, room - rows
            part.append(reading._replace(rows=rows, wanted=reading.wanted and not left))
            if not room:
                yield part
                part, room = [], most
    if part:
        yield part
