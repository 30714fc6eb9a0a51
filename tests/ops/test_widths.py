"""The kernels as compiled for other processors: every vector width that this one can run passes the same tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jittor_lora.ops.cpu import library
from jittor_lora.system import machine
from jittor_lora.system.runtime import kernel_tools
from needs import needs_kernels

pytestmark = [needs_kernels, pytest.mark.skipif(not machine.is_x86(), reason="needs an x86 processor"),
              pytest.mark.slow]

TESTS = [Path(__file__).parent / f"test_{name}.py"
         for name in ("kernels", "decode", "screen", "storage", "stored_decoding")]
AVX2 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# Compiler flags, and the processor flags that they need; 4 is NEON's width too.
WIDTHS = {
    "4": (["-march=x86-64-v2"], {"ssse3", "sse4_2", "popcnt"}),
    "8 without fused multiply-add": (["-march=x86-64-v2", "-mavx"], {"avx"}),
    "8": (["-march=x86-64-v3"], AVX2),
    "8 with products of bytes": (["-march=x86-64-v3", "-mavxvnni"], AVX2 | {"avx_vnni"}),
    "16": (["-march=x86-64-v4"], AVX512),
    "16 with products of bytes": (["-march=x86-64-v4", "-mavx512vnni"], AVX512 | {"avx512_vnni"}),
    "16 with bf16": (["-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"], AVX512 | {"avx512_vnni", "avx512_bf16"}),
}


def instruction_sets(*flags: str) -> set[str]:
    """The macros that the kernels ask for, as far as the compiler defines them with these flags."""
    asked = {macro for path in library.SOURCES.iterdir()
             for line in re.findall(r"^#\s*(?:if|elif|ifdef).*", path.read_text(encoding="utf-8"), re.MULTILINE)
             for macro in re.findall(r"__[A-Z0-9_]+__", line)}
    done = subprocess.run([kernel_tools().compiler, *library.FLAGS, *flags, "-dM", "-E", "-x", "c++", "/dev/null"],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a compiler that knows {' '.join(flags)}")
    return asked & set(re.findall(r"#define (\w+)", done.stdout))


@pytest.mark.parametrize("width", WIDTHS)
def test_operators(width):
    flags, needed = WIDTHS[width]
    missing = needed - machine.cpu_flags()
    if missing:
        pytest.skip(f"needs a processor with {', '.join(sorted(missing))}")
    if instruction_sets(*flags) == instruction_sets():
        pytest.skip("these are the kernels of this processor, which the other tests run")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, TESTS),
               *(f"--kernel-flag={flag}" for flag in flags)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:]
