"""One table says what runs where; networks and decoding know no backend."""

from __future__ import annotations

import inspect
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import jittor_lora
from jittor_lora import ops
from jittor_lora.ops import Matrix, TrainedMatrix, backend, portable
from jittor_lora.system.runtime import jt
from needs import needs_kernels

X = np.random.RandomState(0).standard_normal((3, 5)).astype(np.float32)


@pytest.fixture
def other(monkeypatch):
    """A backend in place of the CPU's: it adds one to sums and has nothing else."""
    module = types.ModuleType("other_backend")
    module.works, module.precisions = lambda: True, lambda: ("fp32",)
    module.OPERATIONS = {"add": lambda x, y: x + y + 1}
    monkeypatch.setitem(sys.modules, "other_backend", module)
    monkeypatch.setattr(backend, "BACKENDS", {"cpu": "other_backend"})

    def forget():
        backend._backend.cache_clear()
        backend._choices.clear()

    forget()
    yield module
    monkeypatch.undo()
    forget()


def test_another_backend_is_a_line_in_the_table(other):
    x = jt.array(X)
    np.testing.assert_array_equal(ops.add(x, x).numpy(), X + X + 1)
    np.testing.assert_array_equal(ops.swiglu(x, x).numpy(), portable.swiglu(x, x).numpy())
    weight = Matrix.of(X)
    np.testing.assert_array_equal(ops.linear(x, weight).numpy(), portable.linear(x, weight.var).numpy())
    with ops.portable_operations("arrays"):
        np.testing.assert_array_equal(ops.add(x, x).numpy(), X + X)
    assert not any(map(ops.has_kernel, backend.OPERATIONS))
    assert backend.kernels_work() and not ops.bf16_works()


def test_a_backend_that_does_not_work_is_left_out(other):
    other.works = lambda: False
    x = jt.array(X)
    np.testing.assert_array_equal(ops.add(x, x).numpy(), X + X)
    assert not backend.kernels_work()


@needs_kernels
def test_groups_are_switched_one_by_one_and_back():
    def fused() -> list[str]:
        return list(filter(ops.has_kernel, backend.OPERATIONS))

    everything = list(backend.OPERATIONS)
    assert fused() == everything
    with ops.portable_operations("norms"):
        assert fused() == [group for group in everything if group != "norms"]
        assert backend.chosen("rms_norm") is portable.rms_norm
        with ops.portable_operations():
            assert fused() == []
        assert backend.chosen("rms_norm") is portable.rms_norm and ops.has_kernel("linear")
    assert fused() == everything and backend.chosen("rms_norm") is not portable.rms_norm
    with pytest.raises(ValueError, match="unknown operations: softmax; expected some of linear, attention"):
        with ops.portable_operations("softmax"):
            pass


def test_implementations_take_the_arguments_of_the_definition():
    from jittor_lora.ops.cpu.backend import OPERATIONS
    assert OPERATIONS.keys() == {name for group in backend.OPERATIONS.values() for name in group}
    for name, run in OPERATIONS.items():
        if name != "decoder":
            for other in (getattr(portable, name), getattr(ops, name)):
                found, expected = (inspect.signature(f).parameters.values() for f in (run, other))
                assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in expected], name


@needs_kernels
@pytest.mark.parametrize("with_update", [False, True])
def test_a_trained_weight_gets_its_gradient(with_update):
    from jittor_lora.ops import fused
    w = np.random.RandomState(1).standard_normal((4, 5)).astype(np.float32)
    pair = [jt.array(np.ones((2, 5), np.float32)), jt.array(np.ones((4, 2), np.float32))]

    def gradient(module, wrap):
        var = jt.array(w)
        y = module.lora_linear(jt.array(X), wrap(var), None, *pair, 0.5) if with_update else \
            module.linear(jt.array(X), wrap(var))
        return jt.grad((y * y).sum(), var).numpy()

    np.testing.assert_array_equal(gradient(fused, TrainedMatrix), gradient(portable, lambda var: var))


def test_no_module_reaches_past_its_neighbour():
    package = Path(jittor_lora.__file__).parent
    backends = {path.parent.name for path in (package / "ops").glob("*/backend.py")}
    assert backends == {module.split(".")[2] for module in backend.BACKENDS.values()}
    for path in package.rglob("*.py"):
        folder = path.relative_to(package).parts[:-1]
        reached = set(re.findall(rf"^\s*(?:from|import) jittor_lora\.ops\.({'|'.join(backends)})\b",
                                 path.read_text(encoding="utf-8"), re.MULTILINE))
        assert reached <= set(folder[1:2] if folder[:1] == ("ops",) else ()), path
