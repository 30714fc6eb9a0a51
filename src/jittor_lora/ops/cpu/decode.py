"""Reading and continuing texts in one call of C++ for all layers: the Python side of kernels/decode.cpp."""

from __future__ import annotations

import copy
import ctypes
import weakref
from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.ops.cpu.interface import ENUMERATIONS, STRUCTURES
from jittor_lora.ops.cpu.library import library
from jittor_lora.system.runtime import jt

ACTIVATIONS = tuple(map(str.lower, ENUMERATIONS["Activation"]))
ROWS = 512  # read at a time: the states of many more do not stay in the cache
_Matrix, _Linear, _Norm, _Layer, _Network, _Span, _Segment = (
    STRUCTURES[name] for name in ("Matrix", "Linear", "Norm", "Layer", "Network", "Span", "Segment"))


class LinearWeights(NamedTuple):
    """One linear layer: its weight from `pack`, bias (out,), and the update beside it: A (r, in), and B (out, r) times
    the scaling."""

    packed: Any
    outputs: int
    bias: Optional[np.ndarray] = None
    update: Optional[tuple[np.ndarray, np.ndarray]] = None


class NormWeights(NamedTuple):
    weight: np.ndarray
    bias: Optional[np.ndarray] = None


class LayerWeights(NamedTuple):
    """One block. `qkv` is one fused layer or three, `up` one layer or the gate and what it gates."""

    attention_norm: NormWeights
    qkv: Sequence[LinearWeights]
    out: LinearWeights
    mlp_norm: NormWeights
    up: Sequence[LinearWeights]
    down: LinearWeights


class Sizes(NamedTuple):
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    root_mean_square: bool  # RMS norm, not layer norm
    activation: str  # one of ACTIVATIONS
    norm_eps: float
    bf16: bool


def pack(weight: np.ndarray, bf16: bool):
    """`weight` (out, in), float32 and contiguous, in panels, as float32 or rounded to bfloat16: uint8 bytes."""
    packed = jt.empty((library().jl_decode_packed_size(*weight.shape, int(bf16)),), "uint8")
    packed.sync()
    library().jl_decode_pack(_at(weight), *weight.shape, int(bf16), packed.raw_ptr)
    return packed


def pack_screen(weight: np.ndarray, bf16: bool):
    """`weight` (out, in), float32 and contiguous, as bytes with bounds on what they leave out: uint8. They find the
    largest of the products with float32 or bfloat16 weights; None on processors where that is not faster."""
    size = library().jl_decode_screen_size(*weight.shape)
    if not size:
        return None
    packed = jt.empty((size,), "uint8")
    packed.sync()
    library().jl_decode_pack_screen(_at(weight), *weight.shape, int(bf16), packed.raw_ptr)
    return packed


class Span:
    """Room for the keys and values of `rows` rows of a network with these sizes; `used` of them are there."""

    def __init__(self, layers: int, sizes: Sizes, rows: int):
        panel = library().jl_decode_panel()
        self.capacity, self.used = -(-rows // panel) * panel, 0
        wide = -(-sizes.head_dim // panel) * panel
        self.memory = np.empty(layers * sizes.kv_heads * self.capacity * (sizes.head_dim + wide), np.float32)

    def copy(self, used: int) -> Span:
        """Another one with as much room, of which the first `used` rows are the same."""
        made = copy.copy(self)
        made.memory, made.used = self.memory.copy(), used
        return made

    def take(self, other: Span) -> None:
        """Become a copy of another one with as much room."""
        np.copyto(self.memory, other.memory)
        self.used = other.used

    def _structure(self) -> _Span:
        return _Span(self.memory.ctypes.data, self.capacity, self.used)


class Reading(NamedTuple):
    """A run of rows to read: they see the prefix, which has been or is read in the same call, and their own span.

    Args:
        rows: how many.
        wanted: is the token after the last of them asked for?
    """

    own: Span
    prefix: Optional[Span]
    rows: int
    wanted: bool


class Network:
    """A network whose weights are packed.

    Args:
        rotation: cosines and sines (positions, head_dim / 2) of rotary positions, None without them.
        head: (V, width).
        screen: gives the head from `pack_screen`, or None; it is asked when a token is.
        vocabulary: V.
    """

    def __init__(self, sizes: Sizes, layers: Sequence[LayerWeights], last_norm: NormWeights, head: LinearWeights,
                 screen: Callable[[], Any], rotation: Optional[tuple[np.ndarray, np.ndarray]] = None):
        self.sizes, self.vocabulary, self.layers = sizes, head.outputs, len(layers)
        self._screen = screen
        self._panel, self._vector = library().jl_decode_panel(), library().jl_decode_vector()
        self._kept: list[Any] = []  # what the structures point to
        self._space, self._room, self._free = None, 0, lambda: None
        width, attended = sizes.width, sizes.heads * sizes.head_dim
        made = [_Layer(self._norm(layer.attention_norm), self._norm(layer.mlp_norm), self._linear(width, layer.qkv),
                       self._linear(attended, [layer.out]), self._linear(width, layer.up),
                       self._linear(sizes.inner, [layer.down])) for layer in layers]
        self._layers = (_Layer * len(made))(*made)
        cosines, sines = (self._keep(table) for table in rotation) if rotation else (None, None)
        self._network = _Network(
            ctypes.addressof(self._layers), cosines, sines, self._norm(last_norm), self._linear(width, [head]), None,
            len(made), width, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.inner, int(sizes.root_mean_square),
            ACTIVATIONS.index(sizes.activation), int(sizes.bf16), sizes.norm_eps)

    def new_span(self, rows: int) -> Span:
        return Span(self.layers, self.sizes, rows)

    def likeliest(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        """The token with the largest logit after each wanted reading, the first of equal ones: int32.

        Args:
            embedded: (N, width) float32, the first state of each row, reading after reading.
            positions: (N,) int32.

        Raises:
            UserError: logits that are not finite.
        """
        if self._screen is not None:
            packed, self._screen = self._screen(), None
            self._kept.append(packed)
            self._network.screen = None if packed is None else packed.raw_ptr
        tokens = np.empty(sum(reading.wanted for reading in readings), np.int32)
        self._run(embedded, positions, readings, None, tokens)
        return tokens

    def logits(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        """As `likeliest`, all logits: (wanted, V) float32."""
        logits = np.empty((sum(reading.wanted for reading in readings), self.vocabulary), np.float32)
        self._run(embedded, positions, readings, logits, None)
        return logits

    def _run(self, embedded, positions, readings, logits, tokens) -> None:
        embedded = np.ascontiguousarray(embedded, np.float32)
        positions = np.ascontiguousarray(positions, np.int32)
        rows = sum(reading.rows for reading in readings)
        if embedded.shape != (rows, self.sizes.width) or positions.shape != (rows,):
            raise ValueError(f"{rows} rows are read, found {embedded.shape} states and {positions.shape} positions")
        full = [r for r in readings if r.own.used + r.rows > r.own.capacity]
        if full or any(reading.rows < 1 for reading in readings):
            raise ValueError("a reading without rows, or without room for them")
        row = wanted = 0
        for part in _parts(readings):
            end, found = row + sum(r.rows for r in part), slice(wanted, wanted + sum(r.wanted for r in part))
            self._call(embedded[row:end], positions[row:end], part, None if logits is None else logits[found],
                       None if tokens is None else tokens[found])
            row, wanted = end, found.stop

    def _call(self, embedded, positions, readings, logits, tokens) -> None:
        made, first = (_Segment * len(readings))(), 0
        for segment, reading in zip(made, readings):
            segment.own, segment.first, segment.count = reading.own._structure(), first, reading.rows
            segment.wanted, first = int(reading.wanted), first + reading.rows
            reading.own.used += reading.rows
            if reading.prefix is not None:
                segment.prefix = reading.prefix._structure()
        finite = library().jl_decode(ctypes.byref(self._network), self._workspace(first), first, _at(embedded),
                                     _at(positions), len(made), made, _at(logits), _at(tokens))
        if not finite:
            raise UserError("The model gives numbers that are not finite: weights of the base or of the adapter are "
                            "damaged. Fetch or train them again.")

    def _workspace(self, rows: int) -> int:
        """The address of room for the states of so many rows; it is kept, and grows."""
        if rows > self._room:
            made = library().jl_decode_workspace(ctypes.byref(self._network), rows)
            self._free()
            self._free = weakref.finalize(self, library().jl_decode_free, made)
            self._space, self._room = made, rows
        return self._space

    def _keep(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array, np.float32)
        self._kept.append(array)
        return array.ctypes.data

    def _padded(self, array: Optional[np.ndarray], unit: int, axis: int = 0) -> Optional[int]:
        """The address of `array`, an axis filled up with zeros to a multiple of `unit`."""
        if array is None:
            return None
        missing = -array.shape[axis] % unit
        return self._keep(np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)]))

    def _norm(self, norm: NormWeights) -> _Norm:
        return _Norm(self._padded(norm.weight, self._vector), self._padded(norm.bias, self._vector))

    def _linear(self, inputs: int, layers: Sequence[LinearWeights]) -> _Linear:
        """Layers with the same input; their As one after the other, in panels of a vector's width."""
        made, all_a, rank_at = _Linear(inputs=inputs, count=len(layers)), [], 0
        for matrix, layer in zip(made.matrices, layers):
            self._kept.append(layer.packed)
            matrix.weight, matrix.outputs = layer.packed.raw_ptr, layer.outputs
            matrix.bias = self._padded(layer.bias, self._panel)
            if layer.update is not None:
                a, b = layer.update
                matrix.rank, matrix.rank_at = len(a), rank_at
                all_a, rank_at = [*all_a, a], rank_at + len(a)
                matrix.lora_b = self._in_panels(b, self._panel)
        if all_a:
            made.lora_a = self._in_panels(np.concatenate(all_a), self._vector)
            made.ranks = -(-rank_at // self._vector) * self._vector
        return made

    def _in_panels(self, matrix: np.ndarray, unit: int) -> int:
        """(out, in) as panels of (in, unit), the last one filled up with zeros."""
        padded = np.pad(matrix, [(0, -len(matrix) % unit), (0, 0)])
        return self._keep(padded.reshape(-1, unit, matrix.shape[1]).transpose(0, 2, 1))


def _parts(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """The readings in parts of at most ROWS rows, one that is longer cut into several."""
    part, room = [], ROWS
    for reading in readings:
        left = reading.rows
        while left:
            rows = min(left, room)
            left, room = left - rows, room - rows
            part.append(reading._replace(rows=rows, wanted=reading.wanted and not left))
            if not room:
                yield part
                part, room = [], ROWS
    if part:
        yield part


def _at(array: Optional[np.ndarray]) -> Optional[int]:
    return None if array is None else array.ctypes.data
