"""An allocation that fails in a kernel gives the documented message and does not crash the process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import small_run
from jittor_lora.ops.cpu import library
from needs import HAS_BF16, needs_kernels

pytestmark = needs_kernels
SCRIPT = Path(__file__).parent / "without_memory.py"


@pytest.mark.slow
def test_every_allocation_of_every_kernel():
    done = subprocess.run([sys.executable, str(SCRIPT), "fp32", *(["bf16"] if HAS_BF16 else [])], capture_output=True,
                          text=True)
    assert done.returncode == 0 and "all end in exceptions" in done.stdout, done.stdout + done.stderr[-3000:]
    for kernel, kind in (("linear fp32 90", "buffers"), ("linear fp32 90", "products"), ("attention fp32 4", "buffers"),
                         ("attention fp32 2", "objects"), ("attention fp32 2", "products"), ("decoder", "buffers"),
                         ("cross entropy fp32", "buffers"), ("cross entropy fp32", "objects"), ("screen", "objects"),
                         ("cross entropy fp32", "products"), ("decoding likeliest", "objects")):
        assert re.search(rf"^{kernel} .*'{kind}': [1-9]", done.stdout, re.MULTILINE), (kernel, kind, done.stdout)


@pytest.mark.slow
def test_the_command_says_so(tmp_path):
    """Training in which no kernel gets memory: exit code 2 and a message."""
    folder = small_run.make_files(tmp_path, 6, 2)
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import without_memory
without_memory.load().jl_test_fail(0, 0)
from jittor_lora.cli.main import main
sys.exit(main(["train", "--base", {str(folder / 'base')!r}, "--data", {str(folder / 'train.json')!r}, "--output",
               {str(tmp_path / 'run')!r}, "--threads", "2"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "out of memory" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_threads_are_started_only_where_no_exception_escapes():
    """`parallel` passes on what a task throws; the two other regions throw nothing."""
    regions = {path.name: path.read_text(encoding="utf-8").count("#pragma omp") for path in library.SOURCES.iterdir()}
    assert {name: count for name, count in regions.items() if count} == {
        "parallel.h": 2, "decode.cpp": 1, "denormals.cpp": 1}
