"""Every fused operation on a GPU, beside what the card can do at best and beside its definition in stock Jittor.

    python benchmarks/cuda_kernels.py --output DIR [--base smollm2] [--precisions fp32,bf16] [--groups norms,linear]

At best: bytes per second of stock Jittor's x · 2 on a large array, and operations per second of its product of large
matrices. An operation has to read its inputs and write its outputs once, and to compute its products; the longer of
both is its bound, and its share is bound / time. Times are of calls that wait in a queue, without Python, on arrays
that take turns, so that the caches hold few of them. Lines are added to results.jsonl in the output folder as they
come, and a table is printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np
from gpu_results import Results

from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.model.rotary import frequencies
from jittor_lora.ops import AttentionPlan, Matrix, frozen, fused, portable
from jittor_lora.ops.matrix import PRECISIONS
from jittor_lora.system.runtime import jt

EPS = 1e-5
TENSOR_CORES = {"fp32": 0, "tf32": 1, "bf16": 2}  # Jittor's flag `use_tensorcore`


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
    seconds: float = 0.2

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
        run: queues a call; returns arrays.
        bytes, flops: that it has to move and to compute.
    """

    name: str
    run: Callable[[], Any]
    bytes: float
    flops: float = 0.0


def normal(*shape: int, scale: float = 1.0):
    return frozen(np.random.default_rng(1).standard_normal(shape, np.float32) * np.float32(scale))


def passes(name: str, function, arguments: tuple, outputs: int, inputs: int, upstream, flops: float = 0.0,
           backward_flops: float = 0.0) -> list[Timed]:
    """Forward and backward pass of a jt.Function.

    Args:
        inputs, outputs: bytes that the forward pass reads and writes. The backward pass reads the inputs again and the
            outputs' gradients, and writes the inputs'.
    """
    function.execute(*arguments)
    return [Timed(name, lambda: function.execute(*arguments), inputs + outputs, flops),
            Timed(f"{name}, gradient", lambda: function.grad(upstream), 2 * inputs + outputs, backward_flops)]


# Each of the following builds an operation of `module`, `fused` or `portable`: its passes.

def layer_norm(module, s: Sizes) -> list[Timed]:
    size = 4 * s.rows * s.width
    arguments = normal(s.rows, s.width), normal(s.width), normal(s.width), EPS
    return passes("layer norm", module._LayerNorm(), arguments, size, size, normal(s.rows, s.width))


def rms_norm(module, s: Sizes) -> list[Timed]:
    size = 4 * s.rows * s.width
    arguments = normal(s.rows, s.width), normal(s.width), EPS
    return passes("RMS norm", module._RMSNorm(), arguments, size, size, normal(s.rows, s.width))


def gelu(module, s: Sizes) -> list[Timed]:
    size = 4 * s.rows * s.hidden
    return passes("GELU", module._GeluTanh(), (normal(s.rows, s.hidden),), size, size, normal(s.rows, s.hidden))


def swiglu(module, s: Sizes) -> list[Timed]:
    size = 4 * s.rows * s.hidden
    arguments = normal(s.rows, s.hidden), normal(s.rows, s.hidden)
    return passes("SwiGLU", module._SwiGLU(), arguments, size, 2 * size, normal(s.rows, s.hidden))


def rotary(module, s: Sizes) -> list[Timed]:
    x = normal(s.rows, s.heads, s.head_dim)
    angles = ops.rotary_tables(np.arange(s.rows), frequencies(s.head_dim, 1e4))
    return [Timed("rotary", lambda: module.rotary(x, *angles), 4 * s.rows * (2 * s.width + s.head_dim))]


def add(module, s: Sizes) -> list[Timed]:
    x, y = normal(s.rows, s.width), normal(s.rows, s.width)
    return [Timed("sum of two", lambda: module.add(x, y), 12 * s.rows * s.width)]


def rows(module, s: Sizes) -> list[Timed]:
    x, index = normal(s.rows, s.width), jt.array(np.arange(s.labels, dtype=np.int32) * (s.rows // s.labels))
    return [Timed("label rows", lambda: module.rows(x, index), 8 * s.labels * s.width)]


def _gradients(s: Sizes) -> list:
    return [normal(*shape) for _ in range(4 * s.layers) for shape in ((s.rank, s.width), (s.width, s.rank))]


def squared_norms(module, s: Sizes) -> list[Timed]:
    arrays = _gradients(s)
    return [Timed("squared norms", lambda: module.squared_norms(arrays), 4 * sum(a.numel() for a in arrays))]


def adamw(module, s: Sizes) -> list[Timed]:
    arrays = [_gradients(s) for _ in range(4)]
    rates = [1e-4] * len(arrays[0])
    return [Timed("AdamW", lambda: module.adamw(*arrays, (0.9, 0.999), [0.99] * len(rates), rates, 0.3, 1e-8, 0.5),
                  28 * sum(a.numel() for a in arrays[0]))]


def linear(module, s: Sizes, precision: str) -> list[Timed]:
    out, kept = 3 * s.width, 2 if precision == "bf16" else 4
    weight = Matrix.of(np.random.default_rng(1).standard_normal((out, s.width), np.float32), precision)
    x, bias = normal(s.rows, s.width), normal(out)
    pair = normal(s.rank, s.width, scale=s.width**-0.5), normal(out, s.rank)
    if module is portable:
        arguments = x, weight.var, bias, *pair, 2.0, None
    else:
        x.start_grad()
        arguments = x, weight, bias, *pair, (2.0, 0.0, 0, 0, 0)
    product, update = 2 * s.rows * s.width * out, 2 * s.rows * s.rank * (s.width + out)
    forward, backward = passes("linear with LoRA", module._LoraLinear(), arguments, 4 * s.rows * out,
                               4 * s.rows * s.width, normal(s.rows, out), product + update, product + 2 * update)
    weights = kept * out * s.width
    return [forward._replace(bytes=forward.bytes + weights), backward._replace(bytes=backward.bytes + weights)]


def attention(module, s: Sizes, precision: str) -> list[Timed]:
    plan = AttentionPlan(Layout.of_lengths([(s.tokens, [])] * s.sequences), precision)
    size, product = 4 * s.rows * s.width, s.sequences * s.tokens * (s.tokens + 1) * s.width
    arguments = *(normal(s.rows, s.heads, s.head_dim) for _ in range(3)), plan, s.head_dim**-0.5
    return passes("attention", module._Attention(), arguments, size, 3 * size, normal(s.rows, s.width), 2 * product,
                  4 * product)


def cross_entropy(module, s: Sizes, precision: str) -> list[Timed]:
    head = Matrix.of(np.random.default_rng(1).standard_normal((s.vocab, s.width), np.float32), precision)
    labels, weights = jt.array(np.arange(s.labels, dtype=np.int32)), jt.ones(s.labels)
    hidden = normal(s.labels, s.width, scale=s.width**-0.5)
    hidden.start_grad()
    array = head.var if module is portable else head

    def run():
        function = module._TokenCrossEntropy()
        return function.execute(hidden, array, labels, weights, 0.0), function.gradient

    kept = 2 if precision == "bf16" else 4
    return [Timed("cross-entropy and its gradient", run, 2 * kept * s.vocab * s.width,
                  4 * s.labels * s.vocab * s.width)]


# By group of `ops.backend.OPERATIONS`; those with products take a precision.
EXACT = {"norms": (layer_norm, rms_norm), "activations": (gelu, swiglu, rotary), "arrays": (add, rows),
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
        with jt.flag_scope(use_tensorcore=TENSOR_CORES[precision]):
            peaks[precision] = 2 * s.matrix**3 / seconds_of([lambda: jt.matmul(a, b)], s.seconds)
    return Best(copied, peaks)


def measurements(s: Sizes, groups: list[str], precisions: list[str], limit: Best) -> Iterator[dict[str, Any]]:
    """A line per pass of each operation that has a kernel on this device."""
    for group in groups:
        if not ops.has_kernel(group):
            yield {"group": group, "missing": True}
            continue
        for precision in precisions if group in PRODUCTS else ["fp32"]:
            more = [precision] if group in PRODUCTS else []
            for build in EXACT.get(group, PRODUCTS.get(group)):
                found = build(fused, s, *more)
                turns = max(1, min(8, s.work // int(max(timed.bytes for timed in found))))
                several = [found, *(build(fused, s, *more) for _ in range(turns - 1))]
                stock = build(portable, s, *more)
                for number, timed in enumerate(found):
                    took = seconds_of([one[number].run for one in several], s.seconds)
                    with jt.flag_scope(use_tensorcore=TENSOR_CORES[precision]):
                        stock_took = seconds_of([stock[number].run], s.seconds)
                    bound = max(timed.bytes / limit.bytes, timed.flops / limit.flops[precision])
                    yield {"group": group, "name": timed.name, "precision": precision, "seconds": took,
                           "stock_seconds": stock_took, "bytes": timed.bytes, "flops": timed.flops,
                           "share": bound / took}


def row(line: dict[str, Any]) -> str:
    if "missing" in line:
        return f"| {line['group']} | no kernel on this device | | | | | |"
    took = line["seconds"]
    return (f"| {line['name']} | {line['precision']} | {1e6 * took:.1f} | {line['bytes'] / took / 1e9:.0f} | "
            f"{line['flops'] / took / 1e12:.2f} | {100 * line['share']:.0f} % | "
            f"{line['stock_seconds'] / took:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--base", choices=SIZES, default="gpt2", help="whose sizes the arrays have")
    parser.add_argument("--precisions", default="fp32,bf16", help=f"some of {','.join(PRECISIONS)}")
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}")
    given = parser.parse_args()
    groups, precisions, sizes = given.groups.split(","), given.precisions.split(","), SIZES[given.base]
    for name, chosen, known in (("groups", groups, GROUPS), ("precisions", precisions, PRECISIONS)):
        if set(chosen) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}")
    results = Results(given.output / "results.jsonl")
    limit = best(sizes, list(dict.fromkeys(["fp32", *precisions])))
    results.add("kernels: best", base=given.base, **limit._asdict())
    print(f"At best {limit.bytes / 1e9:.0f} GB/s copied, "
          + ", ".join(f"{flops / 1e12:.1f} TFLOP/s in {precision}" for precision, flops in limit.flops.items()) + ".\n\n"
          "| operation | precision | µs | GB/s | TFLOP/s | share of the bound | faster than stock Jittor |\n"
          "| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with jt.no_grad():
        for line in measurements(sizes, groups, precisions, limit):
            results.add("kernels", base=given.base, **line)
            print(row(line), flush=True)


if __name__ == "__main__":
    main()
