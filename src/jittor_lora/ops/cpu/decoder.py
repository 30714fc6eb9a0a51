"""Reading and continuing texts in one C++ call for all layers: the Python side of kernels/decode.cpp."""

from __future__ import annotations

import copy
import ctypes
import hashlib
import weakref
from typing import Any, Optional, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.ops.cpu import packing
from jittor_lora.ops.cpu.interface import ENUMERATIONS, STRUCTURES
from jittor_lora.ops.cpu.library import library
from jittor_lora.ops.decoding import NOT_FINITE, LinearWeights, NetworkWeights, NormWeights, Reading, Sizes, in_parts
from jittor_lora.ops.portable import score_scale

ACTIVATIONS = tuple(map(str.lower, ENUMERATIONS["Activation"]))
ROWS_PER_CALL = 512  # the states of many more rows would not stay in the cache
_Linear, _LayerUpdates, _Norm, _Layer, _Network, _Span, _Reading = (
    STRUCTURES[name] for name in ("Linear", "LayerUpdates", "Norm", "Layer", "Network", "Span", "Reading"))


class Span:
    """See `ops.decoding.Span`. Keys and values of all layers, in panels of keys."""

    def __init__(self, sizes: Sizes, rows: int):
        panel = library().jl_decode_panel()
        self.capacity, self.used = -(-rows // panel) * panel, 0
        self._sizes, self._panel = sizes, panel
        self.memory = np.empty(self.capacity * _row_floats(sizes, panel), np.float32)

    def copy(self, used: int) -> Span:
        made = copy.copy(self)
        made.memory, made.used = self.memory.copy(), used
        return made

    def take(self, other: Span) -> None:
        np.copyto(self.memory, other.memory)
        self.used = other.used

    def block(self, number: int) -> np.ndarray:
        keys, values = self._panels(number)
        return np.concatenate([keys.reshape(len(keys), -1), values.reshape(len(values), -1)], 1)

    def set_block(self, number: int, block: np.ndarray) -> None:
        keys, values = self._panels(number)
        cut = keys[0].size
        keys[...], values[...] = block[:, :cut].reshape(keys.shape), block[:, cut:].reshape(values.shape)

    def _panels(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the keys (layers · heads, head_dim, panel) and values (layers · heads, panels of head_dim, panel,
        panel) of a panel of rows."""
        panel, d = self._panel, self._sizes.head_dim
        heads = self.memory.reshape(self._sizes.layers * self._sizes.kv_heads, -1)
        keys, values = heads[:, : self.capacity * d], heads[:, self.capacity * d :]
        return (keys.reshape(len(heads), -1, d, panel)[:, number],
                values.reshape(len(heads), -1, self.capacity, panel)[:, :, number * panel : (number + 1) * panel])

    def _structure(self) -> _Span:
        return _Span(self.memory.ctypes.data, self.capacity, self.used)


class Adapter:
    """The low-rank updates of a network.

    Attributes:
        layers: `LayerUpdates` of each.
        ranks: the most that share an input.
    """

    def __init__(self, layers: Sequence[Any], ranks: int, kept: Any):
        self.layers = (_LayerUpdates * len(layers))(*layers)
        self.ranks, self._kept = ranks, kept


class Decoder:
    """See `ops.decoding.Decoder`. Weights are packed here, but for the head's screen: only `likeliest` needs it."""

    def __init__(self, weights: NetworkWeights):
        sizes, head = weights.sizes, weights.head
        self._sizes, self._vocabulary, self._head = sizes, head.shape[0], head
        self._panel, self._vector = library().jl_decode_panel(), library().jl_decode_vector()
        self.block_rows, self.row_bytes = self._panel, 4 * _row_floats(sizes, self._panel)
        self._kept: list[Any] = []  # what the structures point to
        self._contents = hashlib.sha256()  # of what is not low-rank
        self._space, self._room, self._free = None, (0, 0), lambda: None
        width, attended = sizes.width, sizes.heads * sizes.head_dim
        made, updates, self._ranks = [], [], 0
        for layer in weights.layers:
            update = _LayerUpdates()
            made.append(_Layer(
                self._norm(layer.attention_norm), self._norm(layer.mlp_norm), self._norm(layer.q_norm),
                self._norm(layer.k_norm), self._linear(width, layer.qkv, update.qkv),
                self._linear(attended, [layer.out], update.out), self._linear(width, layer.up, update.up),
                self._linear(sizes.inner, [layer.down], update.down), score_scale(layer.scale, sizes.head_dim)))
            updates.append(update)
        self._layers = (_Layer * len(made))(*made)
        self.adapter = Adapter(updates, self._ranks, self._kept) if self._ranks else None
        cosines, sines = (self._keep(table) for table in weights.rotation) if weights.rotation else (None, None)
        self._network = _Network(
            ctypes.addressof(self._layers), cosines, sines, self._norm(weights.last_norm),
            self._linear(width, [LinearWeights(head)], _LayerUpdates().out), None, len(made), width, sizes.heads,
            sizes.kv_heads, sizes.head_dim, sizes.inner, int(sizes.rms_norm), ACTIVATIONS.index(sizes.activation),
            int(sizes.precision == "bf16"), sizes.norm_eps)
        self.base = sizes, self._contents.digest(), tuple(layer.scale for layer in made)

    def new_span(self, rows: int) -> Span:
        return Span(self._sizes, rows)

    def likeliest(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        if self._head is not None:
            packed, self._head = packing.screen(self._head), None
            self._kept.append(packed)
            self._network.screen = None if packed is None else packed.raw_ptr
        tokens = np.empty(sum(reading.wanted for reading in readings), np.int32)
        self._run(embedded, positions, readings, None, tokens)
        return tokens

    def logits(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        logits = np.empty((sum(reading.wanted for reading in readings), self._vocabulary), np.float32)
        self._run(embedded, positions, readings, logits, None)
        return logits

    def _run(self, embedded, positions, readings, logits, tokens) -> None:
        embedded = np.ascontiguousarray(embedded, np.float32)
        positions = np.ascontiguousarray(positions, np.int32)
        rows = sum(reading.rows for reading in readings)
        if embedded.shape != (rows, self._sizes.width) or positions.shape != (rows,):
            raise ValueError(f"{rows} rows are read, found {embedded.shape} states and {positions.shape} positions")
        full = [r for r in readings if r.own.used + r.rows > r.own.capacity]
        if full or any(reading.rows < 1 for reading in readings):
            raise ValueError("a reading without rows, or without room for them")
        row = wanted = 0
        for part in in_parts(readings, ROWS_PER_CALL):
            end, found = row + sum(r.rows for r in part), slice(wanted, wanted + sum(r.wanted for r in part))
            self._call(embedded[row:end], positions[row:end], part, None if logits is None else logits[found],
                       None if tokens is None else tokens[found])
            row, wanted = end, found.stop

    def _call(self, embedded, positions, readings, logits, tokens) -> None:
        made, first, ranks = (_Reading * len(readings))(), 0, 0
        for segment, reading in zip(made, readings):
            if reading.adapter is not None:
                segment.updates, ranks = ctypes.addressof(reading.adapter.layers), max(ranks, reading.adapter.ranks)
            segment.own, segment.first, segment.count = reading.own._structure(), first, reading.rows
            segment.wanted, first = int(reading.wanted), first + reading.rows
            reading.own.used += reading.rows
            if reading.prefix is not None:
                segment.prefix = reading.prefix._structure()
        finite = library().jl_decode(ctypes.byref(self._network), self._workspace(first, ranks), first,
                                     _at(embedded), _at(positions), len(made), made, _at(logits), _at(tokens))
        if not finite:
            raise UserError(NOT_FINITE)

    def _workspace(self, rows: int, ranks: int) -> int:
        """The address of a grow-only scratch buffer for the states of `rows` rows, with updates of up to `ranks`."""
        if rows > self._room[0] or ranks > self._room[1]:
            room = max(rows, self._room[0]), max(ranks, self._room[1])
            made = library().jl_decode_workspace(ctypes.byref(self._network), *room)
            self._free()
            self._free = weakref.finalize(self, library().jl_decode_free, made)
            self._space, self._room = made, room
        return self._space

    def _keep(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array, np.float32)
        self._kept.append(array)
        return array.ctypes.data

    def _padded(self, vector: Optional[np.ndarray], unit: int) -> Optional[int]:
        """The address of `vector` padded with zeros to a multiple of `unit`."""
        self._contents.update(b"" if vector is None else np.ascontiguousarray(vector, np.float32).tobytes())
        self._contents.update(b"|")
        return None if vector is None else self._keep(np.pad(vector, (0, -len(vector) % unit)))

    def _norm(self, norm: Optional[NormWeights]) -> _Norm:
        if norm is None:
            return _Norm()
        return _Norm(self._padded(norm.weight, self._vector), self._padded(norm.bias, self._vector))

    def _linear(self, inputs: int, layers: Sequence[LinearWeights], update: Any) -> _Linear:
        """Layers that share their input; fills `update`, where their As are concatenated, in panels of a vector's
        width."""
        made, all_a, rank_at = _Linear(inputs=inputs, count=len(layers)), [], 0
        for matrix, low, layer in zip(made.matrices, update.matrices, layers):
            packed, matrix.storage = packing.panels(layer.weight)
            self._kept.append(packed)
            matrix.weight, matrix.outputs = packed.raw_ptr, layer.weight.shape[0]
            matrix.bias = self._padded(layer.bias, self._panel)
            self._contents.update(b"%d," % matrix.weight)
            if layer.update is not None:
                a, b = layer.update
                low.rank, low.rank_at = len(a), rank_at
                all_a, rank_at = [*all_a, a], rank_at + len(a)
                low.b = self._in_panels(b, self._panel)
        if all_a:
            update.a = self._in_panels(np.concatenate(all_a), self._vector)
            update.ranks = -(-rank_at // self._vector) * self._vector
            self._ranks = max(self._ranks, update.ranks)
        return made

    def _in_panels(self, matrix: np.ndarray, unit: int) -> int:
        """(out, in) as panels of (in, unit), the last one padded with zeros."""
        padded = np.pad(matrix, [(0, -len(matrix) % unit), (0, 0)])
        return self._keep(padded.reshape(-1, unit, matrix.shape[1]).transpose(0, 2, 1))


def _row_floats(sizes: Sizes, panel: int) -> int:
    """Of the keys and values of a row, in all layers."""
    return sizes.layers * sizes.kv_heads * (sizes.head_dim + -(-sizes.head_dim // panel) * panel)


def _at(array: Optional[np.ndarray]) -> Optional[int]:
    return None if array is None else array.ctypes.data
