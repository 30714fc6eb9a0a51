"""Every operation and small networks, on the device that Jittor finds, against numbers computed on a CPU.

    nvcc_path= python benchmarks/gpu_checks.py write reference.npz      # on a CPU, by the definitions in stock Jittor
    python benchmarks/gpu_checks.py compare reference.npz results.jsonl

Values and gradients of each operation, loss and gradients of a GPT-2, a Llama and a Qwen3 of two layers, their losses
after three steps, and what they say greedily. `compare` runs what the device would run in training, kernels where it
has them, in each precision; with --stock, the definitions, in float32. The exit status is 1 if a difference is too
large. An error on a GPU ends all that the process has to do there, so `gpu.sh` starts one process for each group.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpu_results import Results

from jittor_lora import ops
from jittor_lora.benchmark.base import GPT2, RandomWeights
from jittor_lora.benchmark.workloads import adapter_values
from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import Stream
from jittor_lora.files.atomic import atomic_write
from jittor_lora.inference.generate import generate
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.config import ModelConfig
from jittor_lora.model.load import build_model
from jittor_lora.ops.backend import OPERATIONS
from jittor_lora.ops.matrix import PRECISIONS
from jittor_lora.system.runtime import jt
from jittor_lora.training.gradients import batch_gradients
from jittor_lora.training.optimizer import AdamW

# Largest ‖found - expected‖ / ‖expected‖ of an array. The expected numbers are float32's; a bf16 number has 8
# significant bits, a TF32 number 11.
BOUNDS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
SEED = 3
GROUPS = ((40, (9, 12)), (0, (17,)), (21, (5, 5, 13)))  # prefix and branches, in rows
EPS = 1e-5
LLAMA = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 400, "max_position_embeddings": 128, "vocab_size": 1009,
         "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
NETWORKS = {
    "gpt2": {**GPT2, "n_embd": 192, "n_layer": 2, "n_head": 3, "n_positions": 128, "vocab_size": 1009,
             "bos_token_id": 1, "eos_token_id": 2},
    "llama": LLAMA,
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 128},
}
TINY = {"gpt2": {"n_embd": 32, "n_head": 2, "vocab_size": 61},
        "llama": {"hidden_size": 32, "intermediate_size": 40, "vocab_size": 61},
        "qwen3": {"hidden_size": 32, "intermediate_size": 40, "vocab_size": 61, "head_dim": 16}}
STEPS, LEARNING_RATE, NEW = 3, 1e-3, 8


class Case(NamedTuple):
    """An operation on arrays.

    Attributes:
        group: of `ops.backend.OPERATIONS`.
        run: (arrays, precision) → array.
        products: whether the precision matters to it.
    """

    name: str
    group: str
    run: Callable[..., Any]
    arrays: Sequence[np.ndarray]
    products: bool = False


class Sizes(NamedTuple):
    """Of the arrays: heads, those of keys, numbers of a head; columns of the feed-forward layer; vocabulary; rank."""

    heads: int = 6
    keys: int = 2
    head_dim: int = 64
    inner: int = 1536
    vocab: int = 5003
    rank: int = 8

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


TINY_SIZES = Sizes(4, 2, 16, 96, 203, 4)


def cases(sizes: Sizes) -> list[Case]:
    draw = np.random.RandomState(SEED)
    layout = Layout.of_lengths(GROUPS)
    n, width, inner, vocab, rank = layout.rows, sizes.width, sizes.inner, sizes.vocab, sizes.rank

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (draw.standard_normal(shape) * scale).astype(np.float32)

    x, weight, bias = normal(n, width), normal(inner, width, scale=width**-0.5), normal(inner, scale=0.1)
    pair = normal(rank, width, scale=width**-0.5), normal(inner, rank, scale=0.3)
    head = normal(vocab, width, scale=width**-0.5)
    labels, weights = draw.randint(0, vocab, n).astype(np.int32), draw.rand(n).astype(np.float32)
    index = draw.randint(0, n, 70).astype(np.int32)
    chosen = np.sort(draw.permutation(n)[:31]).astype(np.int32)
    frequencies = (10000.0 ** -(np.arange(sizes.head_dim // 2) / (sizes.head_dim // 2))).astype(np.float32)
    angles = ops.rotary_tables(np.arange(n), frequencies)
    gain, shift = 1.0 + normal(width, scale=0.2), normal(width, scale=0.2)

    def lora(x, a, b, precision):
        return ops.lora_linear(x, ops.Matrix.of(weight, precision), jt.array(bias).stop_grad(), a, b, 2.0, 0.1, 7, 5)

    def loss(x, precision):
        return ops.token_cross_entropy(x, ops.Matrix.of(head, precision), labels, weights)

    def scored(qkv, precision):  # the last block computes only the rows that are scored
        plan = ops.AttentionPlan(layout.restricted(chosen), precision)
        return ops.fused_attention(qkv, sizes.heads, plan, jt.array(chosen))

    return [
        Case("layer norm", "norms", lambda x: ops.layer_norm(x, _kept(gain), _kept(shift), EPS), [x]),
        Case("RMS norm", "norms", lambda x: ops.rms_norm(x, _kept(gain), EPS), [x]),
        Case("GELU", "activations", ops.gelu_tanh, [normal(n, inner, scale=2.0)]),
        Case("SwiGLU", "activations", ops.swiglu, [normal(n, inner, scale=2.0), normal(n, inner)]),
        Case("rotary", "activations", lambda x: ops.rotary(x, *angles), [normal(n, sizes.heads, sizes.head_dim)]),
        Case("linear", "linear", lambda x, precision: ops.linear(x, ops.Matrix.of(weight, precision), _kept(bias)),
             [x], True),
        Case("linear with LoRA, dropout 0.1", "linear", lora, [x, *pair], True),
        Case("attention, grouped keys", "attention",
             lambda q, k, v, precision: ops.attention(q, k, v, ops.AttentionPlan(layout, precision)),
             [normal(n, heads, sizes.head_dim) for heads in (sizes.heads, sizes.keys, sizes.keys)], True),
        Case("attention, one array", "attention",
             lambda qkv, precision: ops.fused_attention(qkv, sizes.heads, ops.AttentionPlan(layout, precision)),
             [normal(n, 3 * width)], True),
        Case("attention, scored rows", "attention", scored, [normal(n, 3 * width)], True),
        Case("cross-entropy", "cross_entropy", loss, [x], True),
        Case("sum of two", "arrays", ops.add, [x, normal(n, width)]),
        Case("sum of three gradients", "arrays", lambda x: _used_thrice(x), [x]),
        Case("rows", "arrays", lambda x: ops.rows(x, jt.array(index)), [x]),
    ]


def _kept(array: np.ndarray):
    return jt.array(array).stop_grad()


def _used_thrice(x):
    first, second, third = ops.shared(x, 3)
    return first * 2.0 + second * third


class Check(NamedTuple):
    """
    Attributes:
        group: of `ops.backend.OPERATIONS`, or "networks".
        arrays: yields (name, array).
    """

    title: str
    group: str
    arrays: Callable[[], Iterator[tuple[str, np.ndarray]]]


def checks(tiny: bool, precision: str) -> list[Check]:
    """In other precisions than fp32, only of operations with products, and of networks."""
    sizes = TINY_SIZES if tiny else Sizes()
    found = [Check(case.name, case.group, partial(_operation, case, precision)) for case in cases(sizes)
             if case.products or precision == "fp32"]
    if precision == "fp32":
        found.append(Check("AdamW", "optimizer", partial(_optimizer, sizes)))
    return found + [Check(family, "networks", partial(_network, family, tiny, precision)) for family in NETWORKS]


def _operation(case: Case, precision: str) -> Iterator[tuple[str, np.ndarray]]:
    """The value of an operation and its gradients."""
    variables = [jt.array(array) for array in case.arrays]
    y = case.run(*variables, *([precision] if case.products else []))
    probe = jt.array(np.random.RandomState(SEED).standard_normal(y.shape).astype(np.float32))
    yield case.name, y.numpy()
    for number, gradient in enumerate(jt.grad((y * probe).sum(), variables)):
        yield f"{case.name}, gradient {number + 1}", gradient.numpy()


def _optimizer(sizes: Sizes) -> Iterator[tuple[str, np.ndarray]]:
    draw = np.random.RandomState(SEED)
    shapes = [(sizes.rank, sizes.width), (sizes.inner, sizes.rank), (1,), (sizes.width,)]
    arrays = [[draw.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(3)]
    seconds = [np.square(array) for array in arrays[2]]
    lists = [list(map(ops.as_var, these)) for these in (*arrays, seconds)]
    yield "squared norms", ops.squared_norms(lists[1]).numpy().reshape(-1)
    made = ops.adamw(*lists, (0.9, 0.999), [0.99, 1.0, 0.99, 1.0], [1e-2, 1e-2, 2e-2, 1e-2], 0.3, 1e-8, 0.7)
    for what, these in zip(("parameters", "first moments", "second moments"), made):
        yield f"AdamW, {what}", np.concatenate([array.numpy().reshape(-1) for array in these])


def _network(family: str, tiny: bool, precision: str) -> Iterator[tuple[str, np.ndarray]]:
    """Loss, gradients, loss after some steps, and greedy tokens."""
    config = ModelConfig.from_hugging_face({**NETWORKS[family], **(TINY[family] if tiny else {})}, "config.json")
    model = build_model(config, RandomWeights(config), precision)
    if model.precision != precision:
        raise ValueError(f"no {precision} on this device")
    adapter = inject(model, LoraConfig(r=4, alpha=8, target_modules=DEFAULT_TARGETS[config.family]))
    parameters = adapter.parameters()
    start = adapter_values({name: tuple(p.shape) for name, p in parameters.items()})
    adapter.load({name: 5 * values for name, values in start.items()})
    stream, optimizer = _stream(config), AdamW(dict(parameters))
    loss, gradients = batch_gradients(model, [stream], parameters)
    yield f"{family}: loss", np.float32([loss])
    arrays = {name: gradient.numpy() for name, gradient in gradients.items()}
    yield f"{family}: gradients", np.concatenate([array.reshape(-1) for array in arrays.values()])
    if precision == "fp32":  # in others, the rounding of a product may be as large as a small gradient
        for name, array in arrays.items():
            yield f"{family}: gradient of {name}", array
    for _ in range(STEPS):
        optimizer.step(batch_gradients(model, [stream], parameters)[1], LEARNING_RATE)
    yield f"{family}: loss after {STEPS} steps", np.float32([batch_gradients(model, [stream], parameters)[0]])
    if precision == "fp32":  # in others, the likelier of two near tokens may differ
        prompts = np.random.RandomState(SEED).randint(3, config.vocab_size, (3, 9)).tolist()
        yield f"{family}: tokens", np.float32(generate(model, [], prompts, NEW))


def _stream(config: ModelConfig) -> Stream:
    draw, layout = np.random.RandomState(SEED), Layout.of_lengths(GROUPS)
    positions = np.concatenate([np.arange(start, start + length) for prefix, branches in GROUPS
                                for start, length in ((0, prefix), *((prefix, branch) for branch in branches))])
    rows = np.arange(0, layout.rows, 2, dtype=np.int32)
    return Stream(draw.randint(0, config.vocab_size, layout.rows).astype(np.int32), positions.astype(np.int32), layout,
                  rows, np.arange(len(rows), dtype=np.int32),
                  draw.randint(0, config.vocab_size, len(rows)).astype(np.int32), np.ones(len(rows), np.float32), [])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """‖found - expected‖ / ‖expected‖, infinite for other shapes and for NaN."""
    if found.shape != expected.shape:
        return float("inf")
    error = float(np.linalg.norm((found - expected).astype(np.float64)) / max(np.linalg.norm(expected), 1e-30))
    return error if np.isfinite(error) else float("inf")


def available() -> list[str]:
    """The precisions that the device multiplies fast."""
    works = {"fp32": True, "tf32": ops.tf32_works(), "bf16": ops.bf16_works()}
    return [precision for precision in PRECISIONS if works[precision]]


def write(path: Path, tiny: bool) -> None:
    with ops.portable_operations():
        found = {name: array for check in checks(tiny, "fp32") for name, array in check.arrays()}
    with atomic_write(path, "wb") as stream:
        np.savez_compressed(stream, **found)


def compare(path: Path, results: Results, tiny: bool, precision: str, stock: bool = False,
            groups: Sequence[str] = ()) -> bool:
    """Add a line for every array to the results.

    Args:
        groups: all by default.

    Returns: whether all are within the bounds.
    """
    expected, close = np.load(path), True
    with ops.portable_operations() if stock else contextlib.nullcontext():
        for check in checks(tiny, precision):
            if groups and check.group not in groups:
                continue
            about = {"precision": precision, "group": check.group, "stock": stock,
                     "device": "cuda" if jt.flags.use_cuda else "cpu",
                     "kernel": check.group != "networks" and ops.has_kernel(check.group)}
            try:
                for name, found in check.arrays():
                    error = difference(found, expected[name])
                    ok = error <= BOUNDS[precision]
                    results.add("checks", **about, name=name, error=error if np.isfinite(error) else None,
                                bound=BOUNDS[precision], ok=ok)
                    close = close and ok
                    if not ok:
                        print(f"{precision}{', stock' if stock else ''}: {name}: {error:.1e}, expected at most "
                              f"{BOUNDS[precision]:.0e}", flush=True)
            except Exception as error:
                close, failure = False, f"{type(error).__name__}: {error}"
                results.add("checks", **about, name=check.title, failure=failure, ok=False)
                print(f"{precision}{', stock' if stock else ''}: {check.title}: {failure}", flush=True)
    return close


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("reference", type=Path)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--groups", nargs="+", default=(), choices=(*OPERATIONS, "networks"), help="all by default")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS,
                        help="by default those that the device multiplies fast")
    parser.add_argument("--stock", action="store_true", help="compare the definitions, in float32")
    parser.add_argument("--tiny", action="store_true", help="smaller arrays, to try the script")
    given = parser.parse_args(arguments)
    if given.what == "write":
        write(given.reference, given.tiny)
        return 0
    close = [compare(given.reference, Results(given.results), given.tiny, precision, given.stock, given.groups)
             for precision in (["fp32"] if given.stock else given.precisions or available())]
    return 0 if all(close) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
