"""Many threads at the sizes of a training step.

Jittor's development branch records wrong values of its own parallel loops with 32 and 64 threads, and a hang with 128
(KI-COMPILER-005). In 1.3.11 an operator is such a loop only where the compile option "parallel" asks for it, which
nothing here does: of Jittor's own operators only oneDNN's products run on several threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import small_run
from needs import needs_kernels

pytestmark = [needs_kernels, pytest.mark.slow]

MANY = (32, 64, 128)
HERE = Path(__file__).parent
COMMAND = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from jittor_lora.cli.main import main
code = main(sys.argv[1:])
import many_threads
many_threads.check_that_loops_are_serial()
sys.exit(code)
"""


def run(threads: int, *command: object) -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_DYNAMIC": "false"}
    done = subprocess.run([sys.executable, *map(str, command)], env=environ, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "found.npz"
    run(1, HERE / "many_threads.py", path)
    return np.load(path)


@pytest.mark.parametrize("threads", MANY)
def test_operators(threads, one_thread, tmp_path):
    """The kernels give the same bits; Jittor's operators, and so the portable operations, the same values."""
    run(threads, HERE / "many_threads.py", tmp_path / "found.npz")
    found = np.load(tmp_path / "found.npz")
    assert set(found.files) == set(one_thread.files)
    for name in found.files:
        ours, expected = found[name], one_thread[name]
        if name.startswith("kernel/"):
            assert ours.tobytes() == expected.tobytes(), name
        else:
            assert np.abs(ours - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1.0), name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_run.make_files(tmp_path_factory.mktemp("files"), 12, 2)


def trained(files: Path, output: Path, threads: int) -> bytes:
    run(threads, "-c", COMMAND, "train", "--base", files / "base", "--data", files / "train.json", "--output",
        output, "--epochs", "2")
    return next(output.rglob("adapter_model.safetensors")).read_bytes()


def test_whole_runs(files, tmp_path):
    """The same adapter, to the bit."""
    expected = trained(files, tmp_path / "1", 1)
    assert {threads: trained(files, tmp_path / str(threads), threads) == expected for threads in MANY} == dict.fromkeys(
        MANY, True)
