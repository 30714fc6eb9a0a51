"""Reading and continuing texts on a GPU, all layers in one call: the Python side of kernels/decode.cu."""

from __future__ import annotations

import hashlib
from typing import Iterator, Optional, Sequence, Union

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.ops.backend import kernels
from jittor_lora.ops.cuda import packing
from jittor_lora.ops.decoding import NOT_FINITE, LinearWeights, NetworkWeights, NormWeights, Reading, Sizes, in_parts
from jittor_lora.ops.matrix import Matrix, TrainedMatrix, on_device
from jittor_lora.ops.portable import score_scale
from jittor_lora.system.runtime import jt

ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu", "silu", "quick_gelu", "tanh")  # Activation in kernels/decode.cuh
PANEL = 32  # rows of a block, as in kernels/decode.cuh
ROWS_PER_CALL = 512  # whose states are in memory together
_LINEARS, _MATRICES = 4, 3
_UPDATE = np.dtype([("ranks", "i4"), ("a", "i4"), ("matrices", "3i4", _MATRICES)])  # Update in kernels/decode.cuh


class Span:
    """See `ops.decoding.Span`. The keys and values of all layers, float32 on the GPU: (heads of all layers, 2,
    capacity · head_dim)."""

    def __init__(self, call, sizes: Sizes, rows: int):
        self.capacity, self.used = max(1, -(-rows // PANEL)) * PANEL, 0
        self._call, self._floats = call, PANEL * sizes.head_dim
        self.memory = jt.empty((sizes.layers * sizes.kv_heads, 2, self.capacity * sizes.head_dim))
        self.memory.sync()

    def copy(self, used: int) -> Span:
        made = object.__new__(Span)
        made.capacity, made.used, made._call, made._floats = self.capacity, used, self._call, self._floats
        (made.memory,) = self._call("decode_copy_span", [self.memory.shape], [self.memory])
        made.memory.sync()
        return made

    def take(self, other: Span) -> None:
        self._run("decode_take_span", [self.memory, other.memory])
        self.used = other.used

    def block(self, number: int) -> np.ndarray:
        heads, two, _ = self.memory.shape
        (block,) = self._call("decode_block", [(heads, two, self._floats)], [self.memory], number)
        return block.numpy()

    def set_block(self, number: int, block: np.ndarray) -> None:
        self._run("decode_set_block", [self.memory, jt.array(block)], number)

    def _run(self, kernel: str, inputs: list, *numbers: float) -> None:
        """A kernel that writes into the span, at once: to Jittor it is an input like others."""
        (done,) = self._call(kernel, [(1,)], inputs, *numbers)
        done.sync()


class Adapter:
    """The low-rank updates of a network.

    Attributes:
        memory: an `Update` per layer and linear layer, then A and scaling · B of all.
        ranks: of qkv, out, up and down, the most of any layer.
    """

    def __init__(self, updates: Sequence[Sequence[tuple]], arrays: Sequence[np.ndarray]):
        header = np.zeros((len(updates), _LINEARS), _UPDATE)
        starts = np.cumsum([header.nbytes // 4, *(array.size + -array.size % 4 for array in arrays)])
        for layer, linears in enumerate(updates):
            for linear, (ranks, a, matrices) in enumerate(linears):
                header[layer, linear] = (ranks, starts[a] if ranks else 0,
                                         [(rank, at, starts[b] if rank else 0) for rank, at, b in matrices])
        memory = np.zeros(starts[-1], np.float32)
        memory[: starts[0]] = header.view(np.int32).view(np.float32).ravel()
        for start, array in zip(starts, arrays):
            memory[start : start + array.size] = array.ravel()
        self.memory, self.ranks = on_device(memory), header["ranks"].max(0).tolist()


class Decoder:
    """See `ops.decoding.Decoder`. The matrices are those that training multiplies, in the same memory; where training
    multiplies in TF32, decoding does in float32."""

    def __init__(self, weights: NetworkWeights):
        sizes = weights.sizes
        self._call, self._sizes, self._vocabulary = kernels().call, sizes, weights.head.shape[0]
        self.block_rows, self.row_bytes = PANEL, 8 * sizes.layers * sizes.kv_heads * sizes.head_dim
        self._matrices: list[jt.Var] = []
        self._vectors: list[np.ndarray] = []  # norms and biases
        self._length = 0  # of those before
        self._contents = hashlib.sha256()  # of what is not low-rank
        self._updates: list[tuple] = []
        self._low_rank: list[np.ndarray] = []
        self._rotation = weights.rotation
        layers = [self._layer(layer) for layer in weights.layers]
        ends = [*self._norm(weights.last_norm), self._vocabulary]
        self._add(packing.head_forms(_now(weights.head), False)[0])
        self._numbers = [float(number) for number in (
            len(layers), sizes.width, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.inner, sizes.rms_norm,
            ACTIVATIONS.index(sizes.activation), sizes.norm_eps, sizes.precision == "bf16",
            *(number for layer in layers for number in layer), *ends)]
        self._arrays = [on_device(np.concatenate(self._vectors)), *self._matrices]
        by_layer = [self._updates[i : i + _LINEARS] for i in range(0, len(self._updates), _LINEARS)]
        self.adapter = Adapter(by_layer, self._low_rank) if self._low_rank else None
        self.base = sizes, self._contents.digest()
        del self._vectors, self._low_rank, self._updates, self._matrices

    def new_span(self, rows: int) -> Span:
        return Span(self._call, self._sizes, rows)

    def likeliest(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        return np.concatenate([found.view(np.int32) for found in self._run(embedded, positions, readings, True)])

    def logits(self, embedded: np.ndarray, positions: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
        return np.concatenate(list(self._run(embedded, positions, readings, False))).reshape(-1, self._vocabulary)

    def _run(self, embedded, positions, readings, likeliest: bool) -> Iterator[np.ndarray]:
        """What each part of the rows leads to."""
        rows = sum(reading.rows for reading in readings)
        if embedded.shape != (rows, self._sizes.width) or positions.shape != (rows,):
            raise ValueError(f"{rows} rows are read, found {embedded.shape} states and {positions.shape} positions")
        full = [r for r in readings if r.own.used + r.rows > r.own.capacity]
        if full or any(reading.rows < 1 for reading in readings):
            raise ValueError("a reading without rows, or without room for them")
        states = [embedded]
        if self._rotation is not None:
            states += [table[positions] for table in self._rotation]
        states = np.ascontiguousarray(np.concatenate(states, 1), np.float32)
        row = 0
        for part in in_parts(readings, ROWS_PER_CALL):
            end = row + sum(reading.rows for reading in part)
            yield self._read(states[row:end], part, likeliest)
            row = end

    def _read(self, states: np.ndarray, readings: Sequence[Reading], likeliest: bool) -> np.ndarray:
        adapters = list({id(r.adapter): r.adapter for r in readings if r.adapter is not None}.values())
        spans = list({id(s): s for r in readings for s in (r.own, r.prefix) if s is not None}.values())
        numbers = [max((adapter.ranks[linear] for adapter in adapters), default=0) for linear in range(_LINEARS)]
        numbers += [len(adapters), len(spans), *(span.capacity for span in spans), len(readings)]
        adapter_at = {id(adapter): i for i, adapter in enumerate(adapters)}
        span_at = {id(span): i for i, span in enumerate(spans)}
        for r in readings:
            prefix, prefix_rows = (-1, 0) if r.prefix is None else (span_at[id(r.prefix)], r.prefix.used)
            numbers += [r.rows, span_at[id(r.own)], r.own.used, prefix, prefix_rows,
                        adapter_at.get(id(r.adapter), -1), r.wanted]
            r.own.used += r.rows
        inputs = [jt.array(states), *self._arrays, *(a.memory for a in adapters), *(s.memory for s in spans)]
        wanted = sum(r.wanted for r in readings)
        count = wanted if likeliest else wanted * self._vocabulary
        (out,) = self._call("decode", [(count + 1,)], inputs, *self._numbers, *numbers, likeliest)
        found = out.numpy()
        if not found[count:].view(np.int32)[0]:
            raise UserError(NOT_FINITE)
        return found[:count]

    def _layer(self, layer) -> list[float]:
        return [*self._norm(layer.attention_norm), *self._norm(layer.mlp_norm), *self._norm(layer.q_norm),
                *self._norm(layer.k_norm), *self._linear(layer.qkv), *self._linear([layer.out]),
                *self._linear(layer.up), *self._linear([layer.down]), self._scale(layer.scale)]

    def _scale(self, scale: Optional[float]) -> float:
        scale = score_scale(scale, self._sizes.head_dim)
        self._contents.update(repr(scale).encode())
        return scale

    def _vector(self, vector: Optional[np.ndarray]) -> int:
        """Where `vector` begins among the vectors, -1 for none."""
        self._contents.update(b"|")
        if vector is None:
            return -1
        start = self._length
        self._vectors.append(np.ascontiguousarray(vector, np.float32).ravel())
        self._contents.update(self._vectors[-1].tobytes())
        self._length += self._vectors[-1].size
        return start

    def _norm(self, norm: Optional[NormWeights]) -> list[int]:
        return [self._vector(None if norm is None else norm.weight), self._vector(None if norm is None else norm.bias)]

    def _add(self, matrix: jt.Var) -> None:
        self._matrices.append(matrix)
        self._contents.update(b"%d," % id(matrix))

    def _linear(self, layers: Sequence[LinearWeights]) -> list[int]:
        """Layers that share their input."""
        numbers, all_a, ranks, matrices = [len(layers)], [], 0, [(0, 0, 0)] * _MATRICES
        for i, layer in enumerate(layers):
            self._add(packing.product(_now(layer.weight), True))
            numbers += [self._vector(layer.bias), layer.weight.shape[0]]
            if layer.update is not None:
                a, b = layer.update
                matrices[i] = len(a), ranks, len(self._low_rank)
                self._low_rank.append(b)
                all_a, ranks = [*all_a, a], ranks + len(a)
        if all_a:
            self._low_rank.append(np.concatenate(all_a))
        self._updates.append((ranks, len(self._low_rank) - 1, matrices))
        return numbers


def _now(weight: Union[Matrix, TrainedMatrix]) -> Matrix:
    """A weight as it is now."""
    return Matrix.of(weight.numpy(), weight.precision) if weight.trained else weight
