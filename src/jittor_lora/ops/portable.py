"""Every operation of the networks in stock Jittor: the definition, on any device.

Activations are rows: `(N, D)`, or `(N, H, d)` where heads matter. Nothing is padded. All is computed in float32. The
norms use two-pass statistics: the one-pass form loses digits on rows with a large mean. A weight matrix is an array
or a `Matrix`.

Gradients are written out where that keeps less for the backward pass than Jittor's own would. A gradient that is not
asked for, such as a frozen weight's, is never computed: Jittor runs only what is needed.
"""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np

from jittor_lora.ops.portable_attention import (  # noqa: F401, attention is a definition too
    attention,
    fused_attention,
    joined,
    score_scale,
    transposed_product,
)
from jittor_lora.system.runtime import jt

CROSS_ENTROPY_ROWS = 256  # `token_cross_entropy` holds the logits of this many rows at a time
NORMS_AT_A_TIME = 16


def layer_norm(x, weight, bias, eps: float):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016, eq. 4).

    x (N, D), weight and bias (D,); returns (N, D).
    """
    return _LayerNorm.apply(x, weight, bias, eps)


class _LayerNorm(jt.Function):
    """Keeps x, and mean and variance of each row."""

    def execute(self, x, weight, bias, eps):
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        variance = (centred * centred).mean(-1, keepdims=True)
        self.saved = x, weight, eps, mean.stop_grad(), variance.stop_grad()
        return centred / _root(variance, eps, x) * weight + bias

    def grad(self, upstream):
        x, weight, eps, mean, variance = self.saved
        deviation = _root(variance, eps, x)
        normal, g = (x - mean) / deviation, upstream * weight
        dx = (g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True)) / deviation
        return dx, (upstream * normal).sum(0), upstream.sum(0), None


def _root(square, eps: float, x):
    """√(square + eps) of (N, 1) in the shape of x, (N, D), where it is part of the loop that uses it."""
    return jt.sqrt(square.broadcast(x) + eps)


def rms_norm(x, weight, eps: float):
    """x / sqrt(mean(x²) + eps) * weight over the last axis (Zhang and Sennrich 2019, eq. 4).

    x (N, D), weight (D,); returns (N, D).
    """
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(jt.Function):
    """Keeps x, and the mean square of each row."""

    def execute(self, x, weight, eps):
        square = (x * x).mean(-1, keepdims=True)
        self.saved = x, weight, eps, square.stop_grad()
        return x / _root(square, eps, x) * weight

    def grad(self, upstream):
        x, weight, eps, square = self.saved
        size = _root(square, eps, x)
        normal, g = x / size, upstream * weight
        dx = (g - normal * (g * normal).mean(-1, keepdims=True)) / size
        return dx, (upstream * normal).sum(0), None


def gelu_tanh(x):
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), the form GPT-2 was trained with (Hendrycks and Gimpel 2016)."""
    return _GeluTanh.apply(x)


class _GeluTanh(jt.Function):
    """(1 + tanh u) / 2 is 1 / (1 + exp(-2 u)): of CUDA's tanh, as Jittor compiles it, only eleven bits are right."""

    def execute(self, x):
        self.x = x
        return x / (1.0 + _gelu_odds(_gelu_clamp(x)))

    def grad(self, upstream):
        x = _gelu_clamp(self.x)
        odds = _gelu_odds(x)
        share = 1.0 / (1.0 + odds)
        slope = 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3 * 0.044715 * x * x)
        return upstream * share * (1.0 + x * slope * (odds * share))


def _gelu_clamp(x):
    """At ±7 the share of x is 0 or 1 to 4e-16; far beyond, exp would overflow."""
    return jt.clamp(x, -7.0, 7.0)


def _gelu_odds(x):
    """exp(-2 u)."""
    return jt.exp(-2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))


def gelu_erf(x):
    """x · Φ(x) with the exact normal distribution function (Hendrycks and Gimpel 2016, eq. 1)."""
    return 0.5 * x * (1.0 + jt.erf(x * math.sqrt(0.5)))


def relu(x):
    """max(x, 0)."""
    return jt.maximum(x, jt.zeros_like(x))


def silu(x):
    """x · sigmoid(x)."""
    return x * jt.sigmoid(x)


def quick_gelu(x):
    """x · sigmoid(1.702 x) (Hendrycks and Gimpel 2016, section 2)."""
    return x * jt.sigmoid(1.702 * x)


def tanh(x):
    """By exp, see `gelu_tanh`; right to 1.2e-7, which is more than it seems where x is tiny."""
    return 2.0 * jt.sigmoid(2.0 * x) - 1.0


def swiglu(gate, up):
    """silu(gate) · up (Shazeer 2020, eq. 6). Both (N, F)."""
    return _SwiGLU.apply(gate, up)


class _SwiGLU(jt.Function):
    def execute(self, gate, up):
        self.inputs = gate, up
        return silu(gate) * up

    def grad(self, upstream):
        gate, up = self.inputs
        s = jt.sigmoid(gate)
        return upstream * up * s * (1.0 + gate * (1.0 - s)), upstream * gate * s


def linear(x, weight, bias=None):
    """x · weightᵀ + bias. x (N, in), weight (out, in), bias (out,); returns (N, out)."""
    return _Linear.apply(x, _array(weight), bias)


class _Linear(jt.Function):
    """Where heads are split from the product, Jittor's own gradient holds several times as much memory."""

    def execute(self, x, weight, bias):
        self.inputs = x, weight, bias
        return _product(x, weight, bias)

    def grad(self, upstream):
        x, weight, bias = self.inputs
        dbias = None if bias is None else upstream.sum(0)
        return jt.matmul(upstream, weight), transposed_product(upstream, x), dbias


def _array(weight):
    """The array of a `Matrix`."""
    return weight if isinstance(weight, jt.Var) else weight.var


def _product(x, weight, bias):
    y = jt.nn.matmul_transpose(x, weight)
    return y if bias is None else y + bias


def lora_linear(x, weight, bias, lora_a, lora_b, scaling: float, dropout: float = 0.0, dropout_seed: int | None = None,
                dropout_row: int = 0):
    """x · Wᵀ + bias + scaling · dropout(x) · Aᵀ · Bᵀ (Hu et al. 2021, eq. 3).

    Args:
        x: (N, in). weight: (out, in), frozen. bias: (out,) or None.
        lora_a: (r, in). lora_b: (out, r).
        scaling: alpha / r.
        dropout: the probability with which an element of x is hidden from the adapter.
        dropout_seed: which mask (see `dropout_mask`); None for no dropout.
        dropout_row: the mask's row for the first row of x.
    """
    mask = None
    if dropout > 0.0 and dropout_seed is not None:
        mask = x.shape[0], x.shape[1], dropout, dropout_seed, dropout_row
    return _LoraLinear.apply(x, _array(weight), bias, lora_a, lora_b, scaling, mask)


class _LoraLinear(jt.Function):
    """Keeps x and its projection onto A for the gradient; a dropout mask is drawn again."""

    def execute(self, x, weight, bias, lora_a, lora_b, scaling, mask):
        seen = x if mask is None else x * dropout_mask(*mask)
        projected = jt.nn.matmul_transpose(seen, lora_a)  # (N, r)
        self.inputs = x, weight, bias, lora_a, lora_b, scaling, mask, projected
        return _product(x, weight, bias) + scaling * jt.nn.matmul_transpose(projected, lora_b)

    def grad(self, upstream):
        x, weight, bias, lora_a, lora_b, scaling, mask, projected = self.inputs
        towards = jt.matmul(upstream, lora_b) * scaling  # (N, r)
        dx = jt.matmul(towards, lora_a)
        seen = x
        if mask is not None:
            kept = dropout_mask(*mask)
            dx, seen = dx * kept, x * kept
        dx = dx + jt.matmul(upstream, weight)
        dbias = None if bias is None else upstream.sum(0)
        da, db = transposed_product(towards, seen), transposed_product(upstream, projected) * scaling
        return dx, transposed_product(upstream, x), dbias, da, db, None, None


def low_rank(x, lora_a, lora_b, scaling: float, dropout: float = 0.0, dropout_seed: int | None = None,
             dropout_row: int = 0):
    """scaling · dropout(x) · Aᵀ · Bᵀ, the update that `lora_linear` adds; arguments as there."""
    if dropout > 0.0 and dropout_seed is not None:
        x = x * dropout_mask(x.shape[0], x.shape[1], dropout, dropout_seed, dropout_row)
    return scaling * jt.nn.matmul_transpose(jt.nn.matmul_transpose(x, lora_a), lora_b)


def dropout_mask(rows: int, columns: int, p: float, seed: int, first_row: int = 0):
    """(rows, columns) float32: 0 with probability p, else 1 / (1 - p); a pure function of its arguments.

    These are rows of an endless mask, from `first_row` on. Its element (i, j) hashes the counter i · columns + j with
    two keys derived from the seed, by MurmurHash3's finaliser with Wellons' constants, in 32-bit integers that wrap
    around: every device and any number of threads draw the same mask, and a resumed run continues with the same ones.
    """
    first, second = dropout_keys(seed)
    counter = (jt.index((rows, columns), 0) + first_row) * columns + jt.index((rows, columns), 1)
    bits = _mix(_mix(counter ^ first) ^ second) & 0x7FFFFFFF
    kept = bits >= min(round(p * 2.0**31), 2**31 - 1)
    return kept.float32() * (1.0 / (1.0 - p))


def dropout_keys(seed: int) -> tuple[int, int]:
    """The two keys, signed 32-bit integers, that `dropout_mask` derives from a seed."""
    first, second = np.random.SeedSequence(seed).generate_state(2, np.uint32).astype(np.int32).tolist()
    return first, second


def _mix(h):
    """A bijection of 32-bit integers in which every input bit affects every output bit (Wellons 2018, "lowbias32")."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * 0x7FEB352D
    h = (h ^ ((h >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return h ^ ((h >> 16) & 0xFFFF)


def rotary(x, cos, sin):
    """Rotate the pairs (x_i, x_{i + d/2}) by the angles of their position (Su et al. 2021, eq. 34; halves layout).

    x (N, H, d); cos and sin (N, d/2), see `rotary_tables`; returns (N, H, d).
    """
    return _Rotary.apply(x, cos, sin)


class _Rotary(jt.Function):
    def execute(self, x, cos, sin):
        self.angles = cos, sin
        return _turned(x, cos, sin, 1.0)

    def grad(self, upstream):
        return _turned(upstream, *self.angles, -1.0), None, None


def _turned(x, cos, sin, sign: float):
    """x turned by sign · the angles, in one loop: each element times cos, plus or minus its partner times sin."""
    partner = x.reindex(x.shape, ["i0", "i1", "i2-xshape2/2+(i2<xshape2/2)*xshape2"])
    cos, sin = (table.reindex(x.shape, ["i0", "i2-(i2>=xshape1)*xshape1"]) for table in (cos, sin))
    second = (jt.index(x.shape, 2) >= x.shape[2] // 2).float32()
    return x * cos + partner * sin * ((2.0 * second - 1.0) * sign)


def rotary_tables(positions: np.ndarray, frequencies: np.ndarray):
    """cos and sin (N, d/2) of position · frequency, in float32 as the checkpoints were trained.

    Args:
        positions: (N,). frequencies: (d/2,) float32, see `model/rotary.py`.
    """
    angle = positions.astype(np.float32)[:, None] * frequencies[None, :]
    return jt.array(np.cos(angle)), jt.array(np.sin(angle))


def token_cross_entropy(hidden, head, labels, weights, smoothing: float = 0.0):
    """Σ_i weights_i · (log Σ_v exp(hidden_i · head_v) - hidden_i · target_i), where target_i is head_labels_i or,
    smoothed (Szegedy et al. 2016, section 7), (1 - smoothing) · head_labels_i + smoothing · the mean of all head_v.

    The gradients are computed with the value, some rows at a time, so that the (M, V) logits are never held; that of
    `head` only where it is trained.

    Args:
        hidden: (M, D). head: (V, D). labels: (M,) int32, each in [0, V). weights: (M,) float32.
        smoothing: the fraction of each label's weight that is spread over the whole vocabulary.

    Returns: (1,) float32.
    """
    return _TokenCrossEntropy.apply(hidden, _array(head), labels, weights, smoothing)


class _TokenCrossEntropy(jt.Function):
    def execute(self, hidden, head, labels, weights, smoothing):
        everywhere, weights = smoothing / head.shape[0], weights.unsqueeze(1)
        truth = head[labels]
        if smoothing:
            truth = (1.0 - smoothing) * truth + everywhere * head.sum(0, keepdims=True)
        sizes, means, head_gradient = [], [], None  # log Σ exp of the logits; the mean of head by their softmax
        for start in range(0, hidden.shape[0], CROSS_ENTROPY_ROWS):
            rows = slice(start, start + CROSS_ENTROPY_ROWS)
            h = hidden[rows]
            logits = jt.nn.matmul_transpose(h, head)
            top = logits.max(1, keepdims=True)
            odds = jt.exp(logits - top)
            total = odds.sum(1, keepdims=True)
            sizes.append(jt.log(total) + top)
            means.append(jt.matmul(odds, head) / total)
            if not head.is_stop_grad():
                chosen = (jt.index(logits.shape, 1) == labels[rows].unsqueeze(1)).float32()
                target = (1.0 - smoothing) * chosen + everywhere
                part = transposed_product((odds / total - target) * weights[rows], h)
                head_gradient = part if head_gradient is None else head_gradient + part
        self.gradient, self.head_gradient = (joined(means) - truth) * weights, head_gradient
        return (weights * (joined(sizes) - (hidden * truth).sum(1, keepdims=True))).sum()

    def grad(self, upstream):
        head = None if self.head_gradient is None else self.head_gradient * upstream
        return self.gradient * upstream, head, None, None, None


def add(x, y):
    """x + y, of the same shape."""
    return x + y


def shared(x, count: int):
    """x, `count` times, for operations whose gradients are summed at once, from the last to the first."""
    return (x,) * count


def rows(x, index):
    """Rows of x (N, …) by index (M,), int32, with repeats allowed: (M, …)."""
    return x[index]


def embedding(weight, ids):
    """Rows of a `Matrix` (V, D), not rounded, by ids (N,), an int32 array of numpy that has been checked: (N, D)."""
    return weight.rows(ids)


def loss_per(loss, weight: float):
    """loss / weight, (1,): the last operation before the gradient; nothing else may be computed from its result."""
    return loss / weight


def squared_norms(arrays):
    """The sum of the squares of each array: (number of arrays,)."""
    pieces = []
    for start in range(0, len(arrays), NORMS_AT_A_TIME):
        squares = [(array * array).sum() for array in arrays[start : start + NORMS_AT_A_TIME]]
        # Each in its place, zero elsewhere: one loop writes them all.
        spread = [square.reindex([len(squares)], [f"i0-{place}"]) for place, square in enumerate(squares)]
        pieces.append(sum(spread[1:], spread[0]))
    return joined(pieces)


def adamw(parameters, gradients, firsts, seconds, betas: tuple[float, float], decays: Sequence[float],
          rates: Sequence[float], correction: float, epsilon: float, factor: float = 1.0):
    """A step of Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2, lines 6 to 12).

    Args:
        parameters, gradients, firsts, seconds: lists of arrays, at least one in each; those of one parameter are of
            one shape. The last two are the moments.
        decays: for each parameter its factor, 1 - learning rate · weight decay.
        rates: for each parameter the learning rate with the first moment's bias correction, divided by 1 - beta1^t.
        correction: √(1 - beta2^t), the second moment's bias correction.
        factor: of the gradients, for clipping.

    Returns: the new parameters, first and second moments: three lists.
    """
    after = [_adamw(*one, betas, correction, epsilon, factor)
             for one in zip(parameters, gradients, firsts, seconds, decays, rates)]
    return tuple(map(list, zip(*after)))


def _adamw(parameter, gradient, first, second, decay: float, rate: float, betas: tuple[float, float],
           correction: float, epsilon: float, factor: float):
    g = gradient if factor == 1.0 else gradient * factor
    first = first * betas[0] + g * (1.0 - betas[0])
    second = second * betas[1] + g * g * (1.0 - betas[1])
    return parameter * decay - rate * first / (jt.sqrt(second) / correction + epsilon), first, second
