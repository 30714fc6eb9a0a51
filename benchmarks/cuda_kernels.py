"""Every fused operation on a GPU, beside what the card can do at best and, with --stock, its definition.

    python benchmarks/cuda_kernels.py --output DIR [--base smollm2] [--precisions fp32,bf16] [--stock]

At best: bytes per second of stock Jittor's x · 2 on a large array, and operations per second of its product of large
matrices. An operation has to read its inputs and write its outputs once, and to compute its products; the longer of
both is its bound, and its share is bound / time. Times are of calls that wait in a queue, without Python, on arrays
that take turns, so that the caches hold few of them. Lines are added to the file as they come, and a table is printed.
Stock Jittor compiles each of its operators at first use, for seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np
from gpu_results import Results

from jittor_lora import ops
from jittor_lora.benchmark.flops import product
from jittor_lora.data.layout import Layout
from jittor_lora.model.rotary import frequencies
from jittor_lora.ops import AttentionPlan, Matrix, frozen, fused, portable, stock_products
from jittor_lora.ops.precision import PRECISIONS
from jittor_lora.system.runtime import jt

EPS = 1e-5
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2}  # of a frozen weight


class Sizes(NamedTuple):
    """Of a training step: sequences and tokens of each, rows that are scored; of the network and its adapters.

    Attributes:
        work: bytes of an operation's arrays that take turns, and of the array that is copied.
        matrix: rows of the large matrices.
        seconds: that each measurement takes, about.
    """

    sequences: int = 8
    tokens: int = 256
    labels: int = 64
    width: int = 768
    hidden: int = 3072
    heads: int = 12
    vocab: int = 50257
    rank: int = 8
    layers: int = 12
    work: int = 1 << 28
    matrix: int = 8192
    seconds: float = 0.1

    @property
    def rows(self) -> int:
        return self.sequences * self.tokens

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


SIZES = {"gpt2": Sizes(), "smollm2": Sizes(width=576, hidden=1536, heads=9, vocab=49152, layers=30),
         "tiny": Sizes(2, 5, 3, 16, 24, 2, 67, 2, 1, 1 << 10, 16, 0.0)}


class Timed(NamedTuple):
    """One pass of an operation.

    Attributes:
        run, stock: queue a call of the kernel, and of the definition; they return arrays.
        bytes, flops: that it has to move and to compute.
    """

    name: str
    run: Callable[[], Any]
    stock: Callable[[], Any]
    bytes: float
    flops: float = 0.0


NUMBERS = np.random.default_rng(1).standard_normal(1 << 20, np.float32)


def numbers(*shape: int) -> np.ndarray:
    return np.resize(NUMBERS, shape)


def normal(*shape: int, scale: float = 1.0):
    return frozen(numbers(*shape) * np.float32(scale))


def trained(*shape: int, scale: float = 1.0):
    return jt.array(numbers(*shape) * np.float32(scale))


def passes(name: str, function: jt.Function, arguments: tuple, definition: Callable[[], Any], inputs: Sequence[jt.Var],
           forward: float, flops: float = 0.0, backward_flops: float = 0.0, weights: float = 0.0) -> list[Timed]:
    """Forward and backward pass.

    Args:
        function: of `fused`; `definition`: the same in `portable`.
        inputs: that take a gradient.
        forward: bytes of the result.
        weights: bytes of frozen arrays that both passes read.
    """
    result, read = function.execute(*arguments), sum(4 * x.numel() for x in inputs) + weights
    upstream, defined = normal(*result.shape), []

    def gradient() -> Sequence[jt.Var]:
        if not defined:
            with jt.enable_grad():
                defined.append(definition())
        return jt.grad(defined[0], list(inputs), True)

    return [Timed(name, lambda: function.execute(*arguments), definition, read + forward, flops),
            Timed(f"{name}, gradient", lambda: function.grad(upstream), gradient, 2 * read - weights + forward,
                  backward_flops)]


def layer_norm(s: Sizes) -> list[Timed]:
    x, *more = trained(s.rows, s.width), normal(s.width), normal(s.width), EPS
    return passes("layer norm", fused._LayerNorm(), (x, *more), lambda: portable.layer_norm(x, *more), [x],
                  4 * s.rows * s.width)


def rms_norm(s: Sizes) -> list[Timed]:
    x, *more = trained(s.rows, s.width), normal(s.width), EPS
    return passes("RMS norm", fused._RMSNorm(), (x, *more), lambda: portable.rms_norm(x, *more), [x],
                  4 * s.rows * s.width)


def gelu(s: Sizes) -> list[Timed]:
    x = trained(s.rows, s.hidden)
    return passes("GELU", fused._GeluTanh(), (x,), lambda: portable.gelu_tanh(x), [x], 4 * s.rows * s.hidden)


def swiglu(s: Sizes) -> list[Timed]:
    both = trained(s.rows, s.hidden), trained(s.rows, s.hidden)
    return passes("SwiGLU", fused._SwiGLU(), both, lambda: portable.swiglu(*both), both, 4 * s.rows * s.hidden)


def rotary(s: Sizes) -> list[Timed]:
    x = trained(s.rows, s.heads, s.head_dim)
    angles = ops.rotary_tables(np.arange(s.rows), frequencies(s.head_dim, 1e4))
    return passes("rotary", fused._Rotary(), (x, *angles), lambda: portable.rotary(x, *angles), [x],
                  4 * s.rows * s.width, weights=4 * s.rows * s.head_dim)


def add(s: Sizes) -> list[Timed]:
    both = normal(s.rows, s.width), normal(s.rows, s.width)
    return [Timed("sum of two", lambda: fused.add(*both), lambda: portable.add(*both), 12 * s.rows * s.width)]


def label_rows(s: Sizes) -> list[Timed]:
    x, index = normal(s.rows, s.width), jt.array(np.arange(s.labels, dtype=np.int32) * (s.rows // s.labels))
    return [Timed("label rows", lambda: fused.rows(x, index), lambda: portable.rows(x, index),
                  8 * s.labels * s.width)]


def _gradients(s: Sizes) -> list[jt.Var]:
    return [normal(*shape) for _ in range(4 * s.layers) for shape in ((s.rank, s.width), (s.width, s.rank))]


def squared_norms(s: Sizes) -> list[Timed]:
    arrays = _gradients(s)
    return [Timed("squared norms", lambda: fused.squared_norms(arrays), lambda: portable.squared_norms(arrays),
                  4 * sum(array.numel() for array in arrays))]


def adamw(s: Sizes) -> list[Timed]:
    arrays = [_gradients(s) for _ in range(4)]
    arrays[3] = [array * array for array in arrays[3]]
    rates = [1e-4] * len(arrays[0])
    arguments = *arrays, (0.9, 0.999), [0.99] * len(rates), rates, 0.3, 1e-8, 0.5
    return [Timed("AdamW", lambda: fused.adamw(*arguments), lambda: portable.adamw(*arguments),
                  28 * sum(array.numel() for array in arrays[0]))]


def linear(s: Sizes, precision: str) -> list[Timed]:
    out = 3 * s.width
    weight, x, bias = Matrix.of(numbers(out, s.width), precision), trained(s.rows, s.width), normal(out)
    pair = trained(s.rank, s.width, scale=s.width**-0.5), trained(out, s.rank)
    whole, update = product(s.rows, s.width, out), product(s.rows, s.rank, s.width + out)
    return passes("linear with LoRA", fused._LoraLinear(), (x, weight, None, bias, *pair, (2.0, 0.0, 0, 0, 0)),
                  lambda: portable.lora_linear(x, weight, bias, *pair, 2.0), [x, *pair], 4 * s.rows * out,
                  whole + update, whole + 2 * update, BYTES[precision] * s.width * out)


def attention(s: Sizes, precision: str) -> list[Timed]:
    plan = AttentionPlan(Layout.of_lengths([(s.tokens, [])] * s.sequences), precision)
    inputs = [trained(s.rows, s.heads, s.head_dim) for _ in range(3)]
    seen = s.sequences * product(s.tokens + 1, s.width, s.tokens) / 2
    return passes("attention", fused._Attention(), (*inputs, plan, s.head_dim**-0.5),
                  lambda: portable.attention(*inputs, plan), inputs, 4 * s.rows * s.width, 2 * seen, 4 * seen)


def cross_entropy(s: Sizes, precision: str) -> list[Timed]:
    head, hidden = Matrix.of(numbers(s.vocab, s.width), precision), trained(s.labels, s.width, scale=s.width**-0.5)
    labels, weights = jt.array(np.arange(s.labels, dtype=np.int32)), jt.ones(s.labels)

    def run() -> Sequence[jt.Var]:
        function = fused._TokenCrossEntropy()
        return function.execute(hidden, head, None, labels, weights, 0.0), *function.gradients

    def stock() -> Sequence[jt.Var]:
        with jt.enable_grad():
            loss = portable.token_cross_entropy(hidden, head, labels, weights)
            return loss, jt.grad(loss, hidden)

    return [Timed("cross-entropy and its gradient", run, stock, 2 * BYTES[precision] * s.vocab * s.width,
                  2 * product(s.labels, s.width, s.vocab))]


# By group of `ops.backend.OPERATIONS`; those with products take a precision.
EXACT = {"norms": (layer_norm, rms_norm), "activations": (gelu, swiglu, rotary), "arrays": (add, label_rows),
         "optimizer": (squared_norms, adamw)}
PRODUCTS = {"linear": (linear,), "attention": (attention,), "cross_entropy": (cross_entropy,)}
GROUPS = (*EXACT, *PRODUCTS)


def seconds_of(runs: list[Callable[[], Any]], wanted: float) -> float:
    """Seconds per call, the least of three measurements of about `wanted` seconds; the calls take turns."""
    def measured(times: int) -> float:
        made = [runs[number % len(runs)]() for number in range(times)]  # queued: Jittor computes when it must
        started = time.perf_counter()
        jt.sync_all(True)
        del made
        return (time.perf_counter() - started) / times

    measured(len(runs))
    times = max(len(runs), min(64, int(wanted / measured(len(runs)))))
    return min(measured(times) for _ in range(3))


class Best(NamedTuple):
    """Of the device: bytes per second, and operations per second by precision."""

    bytes: float
    flops: dict[str, float]


def best(s: Sizes, precisions: list[str]) -> Best:
    x = frozen(np.ones(s.work // 4, np.float32))
    copied, peaks = 2 * s.work / seconds_of([lambda: x * 2.0], s.seconds), {}
    a, b = normal(s.matrix, s.matrix), normal(s.matrix, s.matrix)
    for precision in precisions:
        with stock_products(precision):
            peaks[precision] = product(s.matrix, s.matrix, s.matrix) / seconds_of([lambda: jt.matmul(a, b)], s.seconds)
    return Best(copied, peaks)


def measurements(s: Sizes, groups: list[str], precisions: list[str], limit: Best,
                 stock: bool) -> Iterator[dict[str, Any]]:
    """A line per pass of each operation that has a kernel on this device."""
    for group in filter(ops.has_kernel, groups):
        for precision in precisions if group in PRODUCTS else ["fp32"]:
            more = [precision] if group in PRODUCTS else []
            for build in EXACT.get(group, PRODUCTS.get(group)):
                found = build(s, *more)
                turns = max(1, min(8, s.work // int(max(timed.bytes for timed in found))))
                several = [found, *(build(s, *more) for _ in range(turns - 1))]
                for number, timed in enumerate(found):
                    took = seconds_of([one[number].run for one in several], s.seconds)
                    bound = max(timed.bytes / limit.bytes, timed.flops / limit.flops[precision])
                    line = {"group": group, "name": timed.name, "precision": precision, "seconds": took,
                            "bytes": timed.bytes, "flops": timed.flops, "share": bound / took}
                    if stock:
                        with stock_products(precision):
                            line["stock_seconds"] = seconds_of([timed.stock], s.seconds)
                    yield line


def row(line: dict[str, Any]) -> str:
    took = line["seconds"]
    stock = f"{line['stock_seconds'] / took:.2f}" if "stock_seconds" in line else ""
    return (f"| {line['name']} | {line['precision']} | {1e6 * took:.1f} | {line['bytes'] / took / 1e9:.0f} | "
            f"{line['flops'] / took / 1e12:.2f} | {100 * line['share']:.0f} % | {stock} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder, to whose results.jsonl lines are added")
    parser.add_argument("--base", choices=SIZES, default="gpt2", help="whose sizes the arrays have")
    parser.add_argument("--precisions", default="fp32,bf16", help=f"some of {','.join(PRECISIONS)}")
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--stock", action="store_true", help="time stock Jittor, too")
    given = parser.parse_args()
    groups, precisions, sizes = given.groups.split(","), given.precisions.split(","), SIZES[given.base]
    for name, chosen, known in (("groups", groups, GROUPS), ("precisions", precisions, PRECISIONS)):
        if set(chosen) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}")
    results = Results(given.output / "results.jsonl")
    limit = best(sizes, list(dict.fromkeys(["fp32", *precisions])))
    results.add("kernels: best", base=given.base, **limit._asdict())
    peaks = ", ".join(f"{flops / 1e12:.1f} TFLOP/s in {precision}" for precision, flops in limit.flops.items())
    print(f"At best {limit.bytes / 1e9:.0f} GB/s copied, and {peaks}.\n\n"
          "| operation | precision | µs | GB/s | TFLOP/s | share of the bound | stock / ours |\n"
          "| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with jt.no_grad():
        for line in measurements(sizes, groups, precisions, limit, given.stock):
            results.add("kernels", base=given.base, **line)
            print(row(line), flush=True)


if __name__ == "__main__":
    main()
