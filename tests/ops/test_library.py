from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest

from jittor_lora import ops
from jittor_lora.errors import UserError
from jittor_lora.ops import backend
from jittor_lora.ops.cpu import backend as cpu
from jittor_lora.ops.cpu import library
from jittor_lora.ops.operator import kernel_op
from jittor_lora.system.runtime import KernelTools, kernel_tools
from needs import HAS_BF16, needs_kernels

pytestmark = needs_kernels


def test_the_kernels_work_here():
    assert backend.kernels_work()
    assert ops.bf16_works() == HAS_BF16


def test_denormals_are_flushed_in_every_thread():
    """In a process of its own: what Jittor loads sets the mode of the main thread, when others run already."""
    check = """
import ctypes
from jittor_lora.ops.cpu.library import library
from jittor_lora.system.runtime import jt, set_threads
set_threads(2)
numbers = (ctypes.c_float * 10**6)()
library().jl_gelu_forward(numbers, numbers, ctypes.c_int64(10**6))
jt.ones(3).exp().sync()
set_threads(3)
print(library().jl_flush_denormals())
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_denormals_are_flushed_in_a_thread_that_runs_already():
    """Such as a server's worker: loading in the main thread sets no mode there."""
    check = """
import threading
asked = threading.Event()
def work():
    asked.wait()
    from jittor_lora.ops.cpu.library import library
    library()
    print(library().jl_flush_denormals())
worker = threading.Thread(target=work, daemon=True)
worker.start()
from jittor_lora.ops.cpu.library import library
library()
asked.set()
worker.join()
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A library of one function, in place of the kernels."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "one.cpp").write_text('#include "one.h"\nextern "C" int one() { return ONE; }\n')
    (folder / "one.h").write_text("#define ONE 1\n")
    monkeypatch.setattr(library, "SOURCES", folder)
    return folder


@pytest.fixture
def tools(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    return kernel_tools()._replace(cache=cache)


def test_it_is_compiled_once(sources, tools):
    screen = io.StringIO()
    made = library.compiled(tools, screen)
    assert "Compiling" in screen.getvalue() and [path.name for path in tools.cache.iterdir()] == [made.name]
    before = made.stat().st_mtime_ns
    assert library.compiled(tools, screen := io.StringIO()) == made
    assert made.stat().st_mtime_ns == before and screen.getvalue() == ""


@pytest.mark.parametrize("name", ["one.cpp", "one.h"])
def test_a_changed_source_is_compiled_anew(name, sources, tools):
    before = library.compiled(tools, io.StringIO())
    with open(sources / name, "a") as stream:
        stream.write("// changed\n")
    assert library.compiled(tools, io.StringIO()) != before


def test_what_the_compiler_says_is_shown_and_nothing_is_left(sources, tools):
    (sources / "two.cpp").write_text("int two() { return missing; }\n")
    with pytest.raises(UserError, match="(?s)could not be compiled.*missing.*doctor"):
        library.compiled(tools, io.StringIO())
    assert not list(tools.cache.iterdir())


def test_without_them_it_goes_on_in_stock_jittor(monkeypatch, capsys):
    def fail(tools: KernelTools, screen):
        raise UserError("no compiler")

    monkeypatch.setattr(library, "compiled", fail)
    monkeypatch.setattr(library, "_loaded", library._loaded.__wrapped__)
    assert not cpu.works()
    assert "no compiler\nContinuing without them" in capsys.readouterr().err


def test_without_their_operator_it_goes_on_in_stock_jittor(tmp_path, monkeypatch, capsys):
    for name in ("kernel_op.h", "kernel_op.cc", "call.h"):
        (tmp_path / name).write_text((kernel_op.HERE / name).read_text().replace("override;", "override; missing"))
    monkeypatch.setattr(kernel_op, "HERE", tmp_path)
    monkeypatch.setattr(kernel_op, "kernel_op", kernel_op.kernel_op.__wrapped__)
    assert not cpu.works()
    assert re.search("The operator of the fused kernels could not be compiled(?s:.*)Continuing without them",
                     capsys.readouterr().err)
