"""The operations of `portable` as fused kernels: the same arguments, values and gradients.

The kernels are those of the current device's backend, `backend.kernels()`. Jittor schedules each call like one of its
own operators (operator/kernel_op.py); the backend's `operators` source unpacks its arguments. Where a backend has no
kernels for gradients of weights, an operation with weights that take one is the portable one.
"""

from __future__ import annotations

import functools
from typing import Iterator, Sequence

import numpy as np

from jittor_lora.ops import portable
from jittor_lora.ops.backend import kernels
from jittor_lora.ops.matrix import Matrix, as_var
from jittor_lora.ops.plan import AttentionPlan
from jittor_lora.ops.precision import PRECISIONS
from jittor_lora.system.runtime import jt

UPDATED_AT_A_TIME = 1 << 22  # numbers of parameters


def call(kernel: str, shapes: Sequence[Sequence[int]], inputs: Sequence[jt.Var], *numbers: float) -> Sequence[jt.Var]:
    """Run a kernel of the current device; returns its outputs, float32 of these shapes."""
    return kernels().call(kernel, shapes, inputs, *numbers)


def _takes_gradient(*variables) -> bool:
    return any(v is not None and not v.is_stop_grad() for v in variables)


def _lacks_kernels(*weights) -> bool:
    """Would a gradient of these weights need kernels that the backend does not have?"""
    return not kernels().trains_weights and _takes_gradient(*weights)


def _is_portable(x, weight: Matrix) -> bool:
    """Is the weight one that trains, and has the backend no kernels for it? They read float32 alone, and a module of
    any Jittor network may have other weights."""
    return weight.trained and not (kernels().trains_weights and x.dtype == weight.var.dtype == "float32")


def _own_array(weight: Matrix):
    """The array of a matrix that trains, for a `jt.Function` to return its gradient; else None."""
    return weight.var if weight.trained else None


def _trained(*weights) -> list:
    """Shapes of the gradients of weights, None for those that take none. To be asked in the forward pass: in the
    backward pass Jittor says of all arrays that they take none."""
    return [weight.shape if _takes_gradient(weight) else None for weight in weights]


def _gradient(kernel: str, shape: Sequence[int] | None, inputs: Sequence[jt.Var], *numbers: float):
    """The output of a kernel of this shape; None without one."""
    return None if shape is None else call(kernel, [shape], inputs, *numbers)[0]


def layer_norm(x, weight, bias, eps: float):
    if _lacks_kernels(weight, bias):
        return portable.layer_norm(x, weight, bias, eps)
    return _LayerNorm.apply(x, weight, bias, eps)


class _LayerNorm(jt.Function):
    def execute(self, x, weight, bias, eps):
        self.inputs, self.trained = (x, weight, eps), _trained(weight, bias)
        return call("layer_norm_forward", [x.shape], [x, weight, bias], eps)[0]

    def grad(self, upstream):
        x, weight, eps = self.inputs
        for_weight, for_bias = self.trained
        return (call("layer_norm_backward", [x.shape], [x, weight, upstream], eps)[0],
                _gradient("layer_norm_weight", for_weight, [x, upstream], eps),
                _gradient("sum_rows", for_bias, [upstream]), None)


def rms_norm(x, weight, eps: float):
    if _lacks_kernels(weight):
        return portable.rms_norm(x, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(jt.Function):
    def execute(self, x, weight, eps):
        self.inputs, self.trained = (x, weight, eps), _trained(weight)
        return call("rms_norm_forward", [x.shape], [x, weight], eps)[0]

    def grad(self, upstream):
        x, weight, eps = self.inputs
        return (call("rms_norm_backward", [x.shape], [x, weight, upstream], eps)[0],
                _gradient("rms_norm_weight", *self.trained, [x, upstream], eps), None)


def gelu_tanh(x):
    return _GeluTanh.apply(x)


class _GeluTanh(jt.Function):
    def execute(self, x):
        self.x = x
        return call("gelu_forward", [x.shape], [x])[0]

    def grad(self, upstream):
        return call("gelu_backward", [self.x.shape], [self.x, upstream])[0]


def swiglu(gate, up):
    return _SwiGLU.apply(gate, up)


class _SwiGLU(jt.Function):
    def execute(self, gate, up):
        self.inputs = gate, up
        return call("swiglu_forward", [gate.shape], [gate, up])[0]

    def grad(self, upstream):
        gate, up = self.inputs
        return tuple(call("swiglu_backward", [gate.shape, up.shape], [gate, up, upstream]))


def rotary(x, cos, sin):
    return _Rotary.apply(x, cos, sin)


class _Rotary(jt.Function):
    def execute(self, x, cos, sin):
        self.angles = cos, sin
        return self._turned(x, 1)

    def grad(self, upstream):
        return self._turned(upstream, -1), None, None

    def _turned(self, x, sign):
        return call("rotary", [x.shape], [x, *self.angles], sign)[0]


def linear(x, weight: Matrix, bias=None):
    if _is_portable(x, weight):
        return portable.linear(x, weight, bias)
    return _lora_linear(x, weight, bias, None, None, (0.0, 0.0, 0, 0, 0))


def lora_linear(x, weight: Matrix, bias, lora_a, lora_b, scaling: float, dropout: float = 0.0,
                dropout_seed: int | None = None, dropout_row: int = 0):
    if _is_portable(x, weight):
        return portable.lora_linear(x, weight, bias, lora_a, lora_b, scaling, dropout, dropout_seed, dropout_row)
    keys = 0, 0
    if dropout_seed is None or dropout <= 0.0:
        dropout = 0.0
    else:
        keys = portable.dropout_keys(dropout_seed)
    return _lora_linear(x, weight, bias, lora_a, lora_b, (scaling, dropout, *keys, dropout_row))


def _lora_linear(x, weight: Matrix, bias, lora_a, lora_b, settings: tuple):
    array = _own_array(weight)
    if _lacks_kernels(bias):
        return _LoraLinear.apply(x, weight, array, None, lora_a, lora_b, settings) + bias
    return _LoraLinear.apply(x, weight, array, bias, lora_a, lora_b, settings)


class _LoraLinear(jt.Function):
    """Keeps x and its projection onto A for the gradient; a dropout mask is drawn again.

    settings: scaling, dropout, the two keys of its mask, the mask's row for the first row of x.
    """

    def execute(self, x, weight, array, bias, lora_a, lora_b, settings):
        rows, out, rank = x.shape[0], weight.shape[0], 0 if lora_a is None else lora_a.shape[0]
        numbers = *settings, out, rank, kernels().storage(weight), _code(weight.precision)
        nothing = _nothing()
        pair = [nothing, nothing] if lora_a is None else [lora_a, lora_b]
        width = -(-rank // kernels().rank_multiple) * kernels().rank_multiple
        w = kernels().product(weight, True) if array is None else array
        inputs = [x, w, nothing if bias is None else bias, *pair]
        y, projected = call("linear_forward", [(rows, out), (rows, width) if width else (1,)], inputs, *numbers,
                            bias is not None)
        wanted = not x.is_stop_grad()
        if wanted and array is None:
            # Packed now: within the backward pass it would make Jittor compute, and keep, all of that pass so far.
            kernels().product(weight, False)
        self.trained = _trained(array, bias)
        self.saved = x, weight, array, pair, projected, numbers, rank > 0, wanted
        return y

    def grad(self, upstream):
        x, weight, array, pair, projected, numbers, adapted, wanted = self.saved
        w = _nothing()
        if wanted:
            w = kernels().product(weight, False) if array is None else array
        dx, da, db = call("linear_backward", [x.shape if wanted else (1,), pair[0].shape, pair[1].shape],
                          [x, projected, upstream, w, *pair], *numbers, wanted)
        for_weight, for_bias = self.trained
        return (dx if wanted else None, None,
                _gradient("transposed_product", for_weight, [upstream, x], _code(weight.precision)),
                _gradient("sum_rows", for_bias, [upstream]), da if adapted else None, db if adapted else None, None)


def _code(precision: str) -> int:
    """The number by which kernels know a precision."""
    return PRECISIONS.index(precision)


@functools.lru_cache(maxsize=None)
def _nothing():
    """A placeholder for an input that the kernel does not read."""
    return jt.array(np.zeros(2, np.float32)).stop_grad()


def _layout(plan: AttentionPlan) -> tuple:
    """What the backward pass of attention reads of the layout."""
    return kernels().layout(plan, False), kernels().layout(plan, True)


def attention(q, k, v, plan: AttentionPlan, scale: float | None = None):
    return _Attention.apply(q, k, v, plan, portable.score_scale(scale, q.shape[2]))


class _Attention(jt.Function):
    """Keeps its inputs, its output and the log-sum-exp per row and head; the weights are computed again."""

    def execute(self, q, k, v, plan, scale):
        rows, heads, d = q.shape
        numbers = scale, _code(plan.precision)
        inputs = [q, k, v, kernels().layout(plan, False)]
        out, lse = call("attention_forward", [(rows, heads * d), (rows, heads)], inputs, *numbers)
        self.saved = q, k, v, plan, out, lse, numbers
        return out

    def grad(self, upstream):
        q, k, v, plan, out, lse, numbers = self.saved
        plan.check_keys(k.shape[0])
        return (*call("attention_backward", [q.shape, k.shape, v.shape],
                      [q, k, v, *_layout(plan), out, lse, upstream], *numbers), None, None)


def fused_attention(qkv, heads: int, plan: AttentionPlan, rows=None, scale: float | None = None):
    return _FusedAttention.apply(qkv, heads, plan, rows, portable.score_scale(scale, qkv.shape[1] // 3 // heads))


class _FusedAttention(jt.Function):
    def execute(self, qkv, heads, plan, rows, scale):
        width = qkv.shape[1] // 3
        numbers = heads, rows is not None, scale, _code(plan.precision)
        count = qkv.shape[0] if rows is None else rows.shape[0]
        layout = kernels().layout(plan, False)
        self.rows = layout if rows is None else rows
        out, lse = call("fused_attention_forward", [(count, width), (count, heads)], [qkv, layout, self.rows], *numbers)
        self.saved = qkv, plan, out, lse, numbers
        return out

    def grad(self, upstream):
        qkv, plan, out, lse, numbers = self.saved
        plan.check_keys(qkv.shape[0])
        inputs = [qkv, *_layout(plan), self.rows, out, lse, upstream]
        return call("fused_attention_backward", [qkv.shape], inputs, *numbers)[0], None, None, None, None


def token_cross_entropy(hidden, head: Matrix, labels, weights, smoothing: float = 0.0):
    if _is_portable(hidden, head):
        return portable.token_cross_entropy(hidden, head, labels, weights, smoothing)
    return _TokenCrossEntropy.apply(hidden, head, _own_array(head), labels, weights, smoothing)


class _TokenCrossEntropy(jt.Function):
    def execute(self, hidden, head, array, labels, weights, smoothing):
        trains = _takes_gradient(array) and not jt.flags.no_grad
        wanted = trains or not hidden.is_stop_grad()
        forms = kernels().head_forms(head, wanted) if array is None else (array, None, None)
        numbers = wanted, kernels().storage(head), _code(head.precision), head.shape[0], smoothing
        shapes = [(1,), hidden.shape if wanted else (1,), *([array.shape] if trains else [])]
        inputs = [hidden, *(_nothing() if form is None else form for form in forms), labels, weights]
        loss, *self.gradients = call("cross_entropy", shapes, inputs, *numbers)
        return loss

    def grad(self, upstream):
        hidden, *head = (call("scale", [gradient.shape], [gradient, upstream])[0] for gradient in self.gradients)
        return hidden, None, head[0] if head else None, None, None, None


def add(x, y):
    return _Add.apply(x, y) if _takes_gradient(x, y) else _sum([x, y])


class _Add(jt.Function):
    def execute(self, x, y):
        return _sum([x, y])

    def grad(self, upstream):
        return upstream, upstream


def shared(x, count: int):
    return (x,) * count if x.is_stop_grad() else tuple(_Shared.apply(x, count))


class _Shared(jt.Function):
    def execute(self, x, count):
        return [x] * count

    def grad(self, *upstream):
        parts = [part for part in reversed(upstream) if part is not None]  # in the order of the backward pass
        return parts[0] if len(parts) == 1 else _sum(parts), None


def _sum(terms):
    return call("sum", [terms[0].shape], terms)[0]


def rows(x, index):
    return _Rows.apply(x, index)


class _Rows(jt.Function):
    def execute(self, x, index):
        self.saved = x.shape, index
        return call("rows_forward", [(index.shape[0], *x.shape[1:])], [x, index])[0]

    def grad(self, upstream):
        shape, index = self.saved
        return call("rows_backward", [shape], [upstream, index])[0], None


def embedding(weight: Matrix, ids: np.ndarray):
    if weight.trained and kernels().trains_weights:
        return rows(weight.var, as_var(np.asarray(ids, np.int32)).stop_grad())
    table = None if weight.trained else kernels().table(weight)
    if table is None:
        return portable.embedding(weight, ids)
    return call("embedding", [(len(ids), weight.shape[1])], [table, as_var(np.asarray(ids, np.int32))],
                table.dtype == "int16")[0].stop_grad()


def loss_per(loss, weight: float):
    return _LossPer.apply(loss, weight)


class _LossPer(jt.Function):
    """Its upstream gradient is 1 and not read: Jittor would compile an operator for that constant."""

    def execute(self, loss, weight):
        self.weight = weight
        return call("divide", [(1,)], [loss], weight)[0]

    def grad(self, upstream):
        return call("reciprocal", [(1,)], [], self.weight)[0], None


def squared_norms(arrays: Sequence[jt.Var]):
    return call("squared_norms", [(len(arrays),)], arrays)[0]


def adamw(parameters, gradients, firsts, seconds, betas, decays: Sequence[float], rates: Sequence[float],
          correction: float, epsilon: float, factor: float = 1.0):
    after: list = [[], [], []]
    for part in _pieces(parameters):
        arrays = [array for kind in (parameters, gradients, firsts, seconds) for array in kind[part]]
        steps = [number for pair in zip(decays[part], rates[part]) for number in pair]
        shapes = [array.shape for array in parameters[part]] * 3
        made = call("adamw", shapes, arrays, betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], correction, epsilon,
                    factor, *steps)
        count = len(made) // 3
        for number, found in enumerate(after):
            found += made[number * count : (number + 1) * count]
    return tuple(after)


def _pieces(parameters: Sequence[jt.Var]) -> Iterator[slice]:
    """Runs of parameters that are updated in one call: the new arrays of a call are held together with the old ones."""
    first, size = 0, 0
    for end, parameter in enumerate(parameters):
        if size and size + parameter.numel() > UPDATED_AT_A_TIME:
            yield slice(first, end)
            first, size = end, 0
        size += parameter.numel()
    if size:
        yield slice(first, len(parameters))


# Those of every backend that has the kernels.
OPERATIONS = {operation.__name__: operation for operation in (
    linear, lora_linear, attention, fused_attention, layer_norm, rms_norm, gelu_tanh, swiglu, rotary,
    token_cross_entropy, add, shared, rows, loss_per, embedding, squared_norms, adamw)}
