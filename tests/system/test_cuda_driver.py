import subprocess
from pathlib import Path

import pytest

from jittor_lora.system import cuda_driver
from jittor_lora.system.cuda_driver import Card

SOURCE = Path(__file__).parents[1] / "fake_cuda" / "cuda.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The fake driver of tests/fake_cuda, which reads what it has from the environment."""
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", SOURCE, "-o", path], check=True)
    return str(path)


@pytest.mark.parametrize("version, newest", [("11.8", (11, 8)), ("12.4", (12, 4)), ("13.0", (13, 0))])
@pytest.mark.parametrize("capability, pair", [("7.5", (7, 5)), ("12.0", (12, 0))])
def test_version_and_cards(library, monkeypatch, version, newest, capability, pair):
    monkeypatch.setenv("FAKE_CUDA_DRIVER", version)
    monkeypatch.setenv("FAKE_CUDA_CAPABILITY", capability)
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "2")
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(24 << 30))
    found = cuda_driver.ask(library)
    assert (found.cuda, found.problem) == (newest, "")
    assert found.cards == (Card("fake", pair, 24 << 30),) * 2
    assert found.cards[0].arch == 10 * pair[0] + pair[1]


def test_no_device(library, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    assert cuda_driver.ask(library).problem == "the NVIDIA driver reports no device"


def test_no_driver():
    assert "cannot be loaded" in cuda_driver.ask("libno_such_driver.so.1").problem


def test_a_driver_that_does_not_start(tmp_path):
    (tmp_path / "cuda.c").write_text("int cuInit(unsigned flags) { return 999; }")
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "cuda.c", "-o", tmp_path / "libcuda.so.1"], check=True)
    assert "does not start (cuInit: 999)" in cuda_driver.ask(str(tmp_path / "libcuda.so.1")).problem
