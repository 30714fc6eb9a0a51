"""What test_many_threads.py runs in processes of its own: operators at the sizes of a training step."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from jittor_lora.data.layout import Layout
from jittor_lora.ops import AttentionPlan, Matrix, fused, portable
from jittor_lora.system.runtime import jt

ROWS, WIDTH, INNER, HEADS, VOCABULARY = 2048, 768, 3072, 12, 50257  # GPT-2 124M, 8 texts of 256 tokens
LLAMA_HEADS, LLAMA_KEY_HEADS, HEAD = 9, 3, 64  # SmolLM2-135M


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    draw = np.random.Generator(np.random.Philox(seed))
    return draw.standard_normal(shape, np.float32) * np.float32(scale)


def with_gradients(operation, *arrays: np.ndarray) -> list:
    variables = [jt.array(array) for array in arrays]
    y = operation(*variables)
    probe = jt.array(normal(*y.shape, seed=99)).stop_grad()
    return [y, *jt.grad((y * probe).sum(), variables)]


def layout(rows: int) -> Layout:
    """Texts of 256 tokens, and then paragraphs with questions."""
    return Layout.of_lengths([(0, [256])] * (rows // 512) + [(156, [20] * 5)] * (rows // 512))


def operators(module, rows: int, vocabulary: int) -> dict:
    """The operations of the networks, by the kernels or the portable ones."""

    def weight(out: int, width: int, seed: int) -> Matrix:
        return Matrix.of(normal(out, width, seed=seed, scale=0.02))

    def lora(width: int, out: int):
        w = weight(out, width, 1)
        return with_gradients(lambda x, a, b: module.lora_linear(x, w, None, a, b, 2.0, 0.1, 5), normal(rows, width),
                              normal(8, width, seed=2), normal(out, 8, seed=3))

    def attention(heads: int, key_heads: int):
        plan = AttentionPlan(layout(rows))
        return with_gradients(lambda q, k, v: module.attention(q, k, v, plan),
                              *(normal(rows, h, HEAD, seed=i) for i, h in enumerate((heads, key_heads, key_heads))))

    def loss():
        head, labels = weight(vocabulary, WIDTH, 4), np.arange(min(rows, 300), dtype=np.int32) * 7
        return with_gradients(lambda h: module.token_cross_entropy(h, head, jt.array(labels), jt.ones(len(labels))),
                              normal(len(labels), WIDTH))

    def norm(name: str, *more: np.ndarray):
        frozen_weights = [jt.array(m).stop_grad() for m in more]
        return with_gradients(lambda x: getattr(module, name)(x, *frozen_weights, 1e-5), normal(rows, WIDTH) + 3)

    def rotary():
        angles = normal(rows, HEAD // 2, seed=6)
        tables = [jt.array(t).stop_grad() for t in (np.cos(angles), np.sin(angles))]
        return with_gradients(lambda x: module.rotary(x, *tables), normal(rows, LLAMA_HEADS, HEAD))

    return {"lora up": lambda: lora(WIDTH, INNER), "lora down": lambda: lora(INNER, WIDTH),
            "attention": lambda: attention(HEADS, HEADS), "loss": loss, "rotary": rotary,
            "shared keys": lambda: attention(LLAMA_HEADS, LLAMA_KEY_HEADS),
            "layer norm": lambda: norm("layer_norm", normal(WIDTH, seed=1), normal(WIDTH, seed=2)),
            "rms norm": lambda: norm("rms_norm", normal(WIDTH, seed=1)),
            "gelu": lambda: with_gradients(module.gelu_tanh, normal(rows, INNER)),
            "swiglu": lambda: with_gradients(module.swiglu, normal(rows, 1536), normal(rows, 1536, seed=1))}


def stock() -> dict:
    """Jittor's own operators, each with numpy's result for the same arrays."""
    x, w = normal(ROWS, INNER), normal(INNER, WIDTH, seed=1)
    q, k = normal(HEADS, 256, HEAD), normal(HEADS, 256, HEAD, seed=1)
    table, ids = normal(VOCABULARY, 64), np.random.RandomState(0).randint(0, VOCABULARY, ROWS).astype(np.int32)
    a = jt.array

    def softmax(array: np.ndarray) -> np.ndarray:
        e = np.exp(array - array.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def scattered() -> np.ndarray:
        expected = np.zeros_like(table)
        np.add.at(expected, ids, normal(ROWS, 64, seed=99))
        return expected

    return {
        "product": lambda: (jt.matmul(a(x), a(w)), x @ w),
        "product of a transposed matrix": lambda: (jt.nn.matmul_transpose(a(x), a(w.T.copy())), x @ w),
        "products": lambda: (jt.matmul(a(q), a(k).transpose(0, 2, 1)), q @ k.transpose(0, 2, 1)),
        "sum": lambda: (a(x).sum(), x.sum(dtype=np.float64)),
        "sum over rows": lambda: (a(x).sum(0), x.sum(0)),
        "sum over columns": lambda: (a(x).sum(1), x.sum(1)),
        "mean": lambda: (a(x).mean(1), x.mean(1)),
        "largest over rows": lambda: (a(x).max(0), x.max(0)),
        "largest over columns": lambda: (a(x).max(1), x.max(1)),
        "softmax": lambda: (jt.nn.softmax(a(x), 1), softmax(x)),
        "elements": lambda: ((a(x) * a(x) + a(x).exp()).sqrt(), np.sqrt(x * x + np.exp(x))),
        "rows of a table": lambda: (a(table)[a(ids)], table[ids]),
        "gradient of a table": lambda: (with_gradients(lambda t: t[a(ids)], table)[1], scattered()),
        "transposed": lambda: (a(x).transpose(), x.T),
        "joined": lambda: (jt.concat([a(x), a(x)], 1), np.concatenate([x, x], 1)),
    }


def check_that_loops_are_serial() -> int:
    """Check all of Jittor's operators that this process has loaded; returns how many there are."""
    maps = Path("/proc/self/maps").read_text()
    sources = {Path(path).with_suffix(".cc") for path in re.findall(r"/\S*_op\.so", maps)}
    parallel = [path.name for path in sources if "#pragma omp" in path.read_text(errors="replace")]
    assert not parallel, parallel
    return len(sources)


def main(path: str) -> None:
    found = {}
    for kind, cases in (("kernel", operators(fused, ROWS, VOCABULARY)),
                        ("portable", operators(portable, 512, 8000))):
        for name, run in cases.items():
            for i, array in enumerate(run()):
                found[f"{kind}/{name}/{i}"] = array.numpy()
    for name, run in stock().items():
        ours, expected = run()
        ours = ours.numpy()
        assert ours.size == np.size(expected), name
        wrong = np.abs(ours.reshape(np.shape(expected)) - expected).max() / max(np.abs(expected).max(), 1e-6)
        # A float32 total of six million numbers that nearly cancel has fewer correct digits.
        assert wrong < (1e-2 if name == "sum" else 1e-4), f"{name}: {wrong}"
        found[f"stock/{name}/0"] = ours
    assert check_that_loops_are_serial()
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
