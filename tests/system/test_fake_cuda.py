"""Jittor's import, a training step and decoding, compiled by nvcc and launched on the fake CUDA runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jittor_lora
from fake_cuda import toolkit
from jittor_lora.system.locks import alone
from needs import needs_nvcc

pytestmark = [needs_nvcc, pytest.mark.slow, pytest.mark.timeout(3600)]

NEW_TOKENS = 4  # by which the longer texts of networks.py are longer
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    """A folder with the toolkit, and the environment of a process that has a GPU; several workers share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "gpu"
    folder.mkdir(exist_ok=True)
    with alone(folder / "lock", "Compiling for the fake GPU"):
        nvcc = folder / "cuda" / "bin" / "nvcc"
        if not (folder / "made").exists():
            toolkit.make(folder / "cuda")
            (folder / "made").touch()
        # Not this process's sys.path: once Jittor is imported, the compiled Jittor of the CPU is in it.
        path = os.pathsep.join([str(TESTS), str(Path(jittor_lora.__file__).parents[1])])
        environ = {**os.environ, **toolkit.variables(nvcc), "JITTOR_HOME": str(folder), "PYTHONPATH": path}
        yield folder, environ


@pytest.fixture(scope="module")
def measured(gpu):
    folder, environ = gpu
    result = folder / "networks.json"
    if not result.exists():
        done = subprocess.run([sys.executable, str(TESTS / "fake_cuda" / "networks.py")], env=environ,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        result.write_text(done.stdout.splitlines()[-1])
    return json.loads(result.read_text())


def test_the_import_uses_the_card(measured):
    assert measured["use_cuda"] == 1
    assert measured["archs"] == [86]
    assert measured["compilers"] >= 1
    assert "fast_math" not in measured["flags"]


# The most launches of a training step of 8 × 256 tokens, and of decoding a token of two texts.
MOST = {("portable", "gpt2"): (2000, 600), ("portable", "llama"): (2600, 700),
        ("fused", "gpt2"): (500, 4), ("fused", "llama"): (900, 4)}


@pytest.mark.parametrize("operators, family", MOST)
def test_a_training_step_takes_few_launches(measured, operators, family):
    step = measured[operators][family]["step"]
    assert 100 < step["launches"] < MOST[operators, family][0], step


@pytest.mark.parametrize("operators, family", MOST)
def test_decoding_takes_few_launches_per_token(measured, operators, family):
    short, long = (measured[operators][family][name]["launches"] for name in ("decoding", "decoding_longer"))
    assert 0 < (long - short) / NEW_TOKENS < MOST[operators, family][1]


def test_doctor_notices_that_nothing_is_computed(gpu, measured):
    _, environ = gpu
    done = subprocess.run([sys.executable, "-m", "jittor_lora.tasks.self_test"], env=environ, capture_output=True,
                          text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "the GPU computes other numbers than the CPU" in done.stdout
