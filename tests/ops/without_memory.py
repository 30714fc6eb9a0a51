"""What test_no_memory.py runs in processes of its own: kernels whose allocations fail."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]

import tiny  # noqa: E402
from jittor_lora.data.layout import Layout  # noqa: E402
from jittor_lora.inference.fused_reader import FusedReader  # noqa: E402
from jittor_lora.inference.reader import Turn  # noqa: E402
from jittor_lora.model.load import build_model  # noqa: E402
from jittor_lora.ops import AttentionPlan, Matrix, TrainedMatrix, fused  # noqa: E402
from jittor_lora.ops.blocks import Blocks  # noqa: E402
from jittor_lora.ops.cpu import library, packing  # noqa: E402
from jittor_lora.ops.matrix import PRECISIONS  # noqa: E402
from jittor_lora.system.runtime import jt, set_threads  # noqa: E402

KINDS = ("buffers", "objects", "products")
HERE = Path(__file__).parent


def load() -> ctypes.CDLL:
    """The kernels, linked to allocations that can be made to fail."""
    sources = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, sources, ignore_errors=True)
    for path in [*library.SOURCES.iterdir(), HERE / "failing_allocations.cpp"]:
        (sources / path.name).symlink_to(path)
    library.SOURCES = sources
    library.FLAGS += tuple(f"-Wl,--wrap={name}" for name in ("aligned_alloc", "_Znwm", "dnnl_sgemm"))
    return library.library()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def matrix_of(array: np.ndarray, kind: str) -> Matrix:
    """In a precision, or in blocks of this kind."""
    if kind in PRECISIONS:
        return Matrix.of(array, kind)
    blocks = Blocks(kind, array.shape, gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind]))
    return Matrix(lambda: blocks)


def linear(kind: str, rows: int):
    matrix = matrix_of(normal(70, 64, seed=1), kind)

    def run():
        x, a, b = (jt.array(v) for v in (normal(rows, 64), normal(5, 64, seed=2), normal(70, 5, seed=3)))
        y = fused.lora_linear(x, matrix, None, a, b, 2.0, 0.1, 7)
        return y, *jt.grad(y.sqr().sum(), [x, a, b])

    return run


def attention(precision: str, kv_heads: int):
    plan = AttentionPlan(Layout.of_lengths([(90, [5, 70]), (0, [40])]), precision)

    def run():
        q, k, v = (jt.array(normal(205, heads, 32, seed=heads + i)) for i, heads in enumerate((4, kv_heads, kv_heads)))
        y = fused.attention(q, k, v, plan)
        return y, *jt.grad(y.sqr().sum(), [q, k, v])

    return run


def cross_entropy(kind: str):
    head, labels = matrix_of(normal(2500, 64, seed=1), kind), jt.array(np.arange(300, dtype=np.int32))

    def run():
        hidden = jt.array(normal(300, 64))
        loss = fused.token_cross_entropy(hidden, head, labels, jt.ones(300), 0.1)
        return loss, jt.grad(loss, hidden)

    return run


def trained(precision: str):
    """Weights that train, with more rows than a transposed product sums at a time."""
    def run():
        x, w, norm = (jt.array(normal(*shape, seed=i)) for i, shape in enumerate(((1100, 48), (300, 48), (48,))))
        weight = TrainedMatrix(w, precision)
        y = fused.linear(fused.layer_norm(x, norm, norm, 1e-5), weight)
        hidden = fused.linear(y[:70], TrainedMatrix(w.transpose(), precision))
        loss = fused.token_cross_entropy(hidden, weight, jt.array(np.arange(70, dtype=np.int32)), jt.ones(70))
        return loss, *jt.grad(loss, [x, w, norm])

    return run


def small():
    """The kernels that hold no memory of their own."""
    x, w = jt.array(normal(90, 48)), jt.array(normal(48, seed=1)).stop_grad()
    return (fused.layer_norm(x, w, w, 1e-5), fused.rms_norm(x, w, 1e-5), fused.gelu_tanh(x),
            fused.swiglu(x, x))


def decoding(ask: str):
    reader = FusedReader(build_model(tiny.config(tiny.LLAMA), tiny.tensors(tiny.LLAMA)))

    def run():
        group = reader.open(9, [4, 5])
        return (getattr(reader, ask)([Turn(group, list(range(9)), [(0, [3, 4]), (1, [5])])]),)

    return run


def decoder_of():
    model = build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2))

    def run():
        reader = FusedReader(model)
        return (reader.logits([Turn(reader.open(3, [1]), [1, 2, 3], [(0, [4])])]),)

    return run


def screen():
    weight, kernels = normal(400, 48), library.library()
    bounds = 2 * weight.nbytes + (1 << 16)

    def run():
        packed = np.zeros(bounds, np.uint8)
        kernels.jl_decode_pack_screen(weight.ctypes.data, *weight.shape, 0, packed.ctypes.data)
        return (packed,)

    return run


def head_in_bf16():
    def run():
        weight = Matrix.of(normal(1500, 48), "bf16")
        return packing.head(weight, False), packing.head(weight, True), packing.product(weight, True)

    return run


def cases(precisions: list[str]) -> dict:
    made = {"norms and activations": lambda: small, "screen": screen, "decoder": decoder_of}
    for ask in ("likeliest", "logits"):
        made[f"decoding {ask}"] = lambda ask=ask: decoding(ask)
    for kind in (*precisions, "Q8_0"):
        for rows in (90, 150):
            made[f"linear {kind} {rows}"] = lambda k=kind, n=rows: linear(k, n)
        made[f"cross entropy {kind}"] = lambda k=kind: cross_entropy(k)
    for precision in precisions:
        made[f"trained {precision}"] = lambda p=precision: trained(p)
        for kv_heads in (4, 2):
            made[f"attention {precision} {kv_heads}"] = lambda p=precision, h=kv_heads: attention(p, h)
    if "bf16" in precisions:
        made["head in bf16"] = head_in_bf16
    return made


def arrays(results) -> list[np.ndarray]:
    return [r if isinstance(r, np.ndarray) else r.numpy() for r in results]


def fail_everywhere(name: str, case, kernels: ctypes.CDLL) -> None:
    """Make each allocation fail: the call raises an exception, and the next one gives the right values."""
    run, failures = case(), dict.fromkeys(KINDS, 0)
    for kind, what in enumerate(KINDS):
        after = 0
        while True:
            kernels.jl_test_fail(kind, after)
            raised = None
            try:
                found = arrays(run())
            except (MemoryError, RuntimeError) as error:
                raised = error
            failed = kernels.jl_test_recover()
            if not failed:
                assert raised is None, raised
                break
            assert raised is not None, f"{name}: a failure of {what} after {after} passed unnoticed"
            assert isinstance(raised, MemoryError) or "bad_alloc" in str(raised), raised
            failures[what] += 1
            # Most buffers are kept: with room for one more each time, each of them is the first to fail once.
            after = failures[what] // 16 if what == "buffers" else after + 1
            assert failures[what] < 3000
    for ours, expected in zip(found, arrays(case()())):
        np.testing.assert_array_equal(ours, expected)
    print(name, failures, flush=True)


def main(precisions: list[str]) -> None:
    kernels = load()
    set_threads(2)
    for name, case in cases(precisions).items():
        fail_everywhere(name, case, kernels)
    print("all end in exceptions")


if __name__ == "__main__":
    main(sys.argv[1:])
