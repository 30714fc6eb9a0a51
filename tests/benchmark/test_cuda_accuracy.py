"""Error bounds of operators on CUDA, as benchmarks/cuda_accuracy.py works them out, and the table of docs/gpu.md."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from programs import load_program

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cuda_accuracy():
    return load_program("benchmarks/cuda_accuracy.py")


def test_the_documented_table_is_what_the_script_prints(cuda_accuracy, capsys):
    cuda_accuracy.main()
    printed = dict(re.findall(r"^\| ([^|]+?) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE))
    text = (ROOT / "docs" / "gpu.md").read_text("utf-8")
    assert set(cuda_accuracy.OPERATORS) | {"fp32", "TF32", "bf16"} <= set(printed)
    for name in (*cuda_accuracy.OPERATORS, "fp32", "TF32", "bf16"):
        written = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
        assert written, name
        for one, other in zip(written.group(1).split(" | "), printed[name].split(" | ")):
            assert float(one) == pytest.approx(float(other), rel=0.5), name  # NumPy's functions differ by processor


@pytest.mark.parametrize("bits, error", [(23, 0.0), (10, 2.0**-11), (7, 2.0**-8)])
def test_rounding_of_factors(cuda_accuracy, bits, error):
    x = np.random.RandomState(0).standard_normal(1000).astype(np.float32)
    worst = np.max(np.abs(cuda_accuracy.rounded(x, bits) / x - 1))
    assert error / 2 <= worst <= error


def test_exactness_leaves_only_rounding_and_fast_math_does_not(cuda_accuracy):
    draw = np.random.RandomState(0)
    x = draw.standard_normal((64, 96)).astype(np.float32)
    exact, fast = (cuda_accuracy.Functions(**bounds, draw=draw) for bounds in (cuda_accuracy.EXACT, cuda_accuracy.FAST))
    for operator in cuda_accuracy.OPERATORS.values():
        assert 0 < cuda_accuracy.error(operator, exact, x) < 2e-6
    assert cuda_accuracy.error(cuda_accuracy.gelu_tanh_by_tanh, fast, x) > 1e-4
