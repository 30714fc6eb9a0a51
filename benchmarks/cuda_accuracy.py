"""Error bounds of the operators on CUDA, from those of CUDA's functions: `python benchmarks/cuda_accuracy.py`.

No GPU is needed. Each operator's definition runs in float32, every exp, log, tanh, division and root of it moved by the
largest error that NVIDIA's programming guide gives for the function, up or down at random; the result is compared with
float64. Products are summed in float32; TF32 and bf16 round their factors first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

F32 = np.float32
ULP = 2.0**-23  # of float32, relative
ROWS, WIDTH = 512, 768
SCALE = math.sqrt(2.0 / math.pi)


@dataclass
class Functions:
    """The functions as one mode of nvcc computes them: relative errors in ulps."""

    exp: Callable[[np.ndarray], np.ndarray]  # ulps as a function of the argument
    log: float
    tanh: float
    divide: float
    root: float
    draw: np.random.RandomState

    def moved(self, exact: np.ndarray, ulps) -> np.ndarray:
        """`exact`, in float64, rounded to float32 after an error of `ulps`, in a random direction."""
        return (exact * (1.0 + ULP * ulps * self.draw.choice([-1.0, 1.0], exact.shape))).astype(F32)

    def of_exp(self, x):
        return self.moved(np.exp(x.astype(np.float64)), self.exp(x))

    def of_log(self, x):
        return self.moved(np.log(x.astype(np.float64)), self.log)

    def of_tanh(self, x):
        return self.moved(np.tanh(x.astype(np.float64)), self.tanh)

    def over(self, x, y):
        return self.moved(x.astype(np.float64) / y, self.divide)

    def of_root(self, x):
        return self.moved(np.sqrt(x.astype(np.float64)), self.root)


class Exact:
    """The same in float64."""

    of_exp, of_log, of_tanh, of_root, over = map(staticmethod, (np.exp, np.log, np.tanh, np.sqrt, np.divide))


def gelu_tanh_by_exp(f, x):
    clamped = np.clip(x, -7, 7)
    return f.over(x, 1 + f.of_exp(-2 * SCALE * (clamped + 0.044715 * clamped * clamped * clamped)))


def gelu_tanh_by_tanh(f, x):
    return 0.5 * x * (1 + f.of_tanh(SCALE * (x + 0.044715 * x * x * x)))


def silu(f, x):
    return f.over(x, 1 + f.of_exp(-x))


def layer_norm(f, x):
    centred = x - x.mean(-1, keepdims=True)
    return f.over(centred, f.of_root((centred * centred).mean(-1, keepdims=True) + x.dtype.type(1e-5)) + 0 * x)


def rms_norm(f, x):
    return f.over(x, f.of_root((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-5)) + 0 * x)


def softmax(f, x):
    odds = f.of_exp(x - x.max(-1, keepdims=True))
    return f.over(odds, odds.sum(-1, keepdims=True) + 0 * x)


def cross_entropy(f, x):
    top = x.max(-1, keepdims=True)
    return f.of_log(f.of_exp(x - top).sum(-1)) + top[:, 0] - x[:, 0]


def adamw(f, x):
    first, second = 0.1 * x, 0.001 * x * x + x.dtype.type(1e-8)
    return f.over(first, f.of_root(second) / x.dtype.type(math.sqrt(0.001)) + x.dtype.type(1e-8))


OPERATORS = {"gelu_tanh, as here, by exp": gelu_tanh_by_exp, "gelu_tanh by tanh": gelu_tanh_by_tanh,
             "silu, swiglu": silu, "layer_norm": layer_norm, "rms_norm": rms_norm,
             "softmax of attention": softmax, "token_cross_entropy": cross_entropy, "adamw, its step": adamw}
# NVIDIA's bounds. sqrt and division without fast math are correctly rounded.
EXACT = {"exp": lambda x: 2.0, "log": 1.0, "tanh": 2.0, "divide": 0.0, "root": 0.0}
FAST = {"exp": lambda x: 2.0 + np.floor(np.abs(1.173 * x)), "log": 3.0, "tanh": 2.0**-11 / ULP, "divide": 2.0,
        "root": 1.0}


def error(operator, functions: Functions, x: np.ndarray) -> float:
    """The largest error relative to the size of the result: of an element, or 1 if that is larger."""
    expected = operator(Exact(), x.astype(np.float64))
    found = operator(functions, x)
    return float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1.0)))


def product_error(bits: int) -> float:
    """Of x · Wᵀ with factors rounded to `bits` bits of the significand, relative to Σ |x| |w|."""
    draw = np.random.RandomState(0)
    x, w = draw.standard_normal((ROWS, WIDTH)).astype(F32), draw.standard_normal((WIDTH, 64)).astype(F32)
    expected, size = x.astype(np.float64) @ w, np.abs(x).astype(np.float64) @ np.abs(w)
    return float(np.max(np.abs(rounded(x, bits) @ rounded(w, bits) - expected) / size))


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """To the nearest number with `bits` bits after the leading one."""
    low = 23 - bits
    return ((x.view(np.int32) + ((1 << low) >> 1)) & -(1 << low)).view(F32) if low else x


def main() -> None:
    draw = np.random.RandomState(1)
    print("| operator | as compiled here | with `-use_fast_math` |\n|---|---|---|")
    for name, operator in OPERATORS.items():
        x = (3 * draw.standard_normal((ROWS, WIDTH))).astype(F32)
        found = [error(operator, Functions(**bounds, draw=draw), x) for bounds in (EXACT, FAST)]
        print(f"| {name} | {found[0]:.1e} | {found[1]:.1e} |")
    print("\n| products, relative to Σ \\|x\\| \\|w\\| | |\n|---|---|")
    for name, bits in (("fp32", 23), ("TF32", 10), ("bf16", 7)):
        print(f"| {name} | {product_error(bits):.1e} |")


if __name__ == "__main__":
    main()
