"""The library of CUDA kernels, compiled by nvcc against the toolkit of tests/fake_cuda: nothing runs here."""

from __future__ import annotations

import ctypes
import io
import re

import pytest

from fake_cuda import toolkit
from jittor_lora.errors import UserError
from jittor_lora.ops import cuda
from jittor_lora.ops.cuda import backend, library
from jittor_lora.system.runtime import kernel_tools
from needs import needs_nvcc


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A CUDA folder, without nvcc's work done in it."""
    return toolkit.make(tmp_path_factory.mktemp("cuda") / "home")


@pytest.fixture
def tools(home, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    return library.CudaTools(home, kernel_tools().compiler, cache)


@pytest.fixture
def one_kernel(tmp_path, monkeypatch):
    """A library of one kernel, in place of all."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "one.cu").write_text('#include "one.h"\n__global__ void kernel(int* to) { *to = ONE; }\n'
                                   'extern "C" __attribute__((visibility("default"))) int one() { return ONE; }\n')
    (folder / "one.h").write_text("#define ONE 1\n")
    monkeypatch.setattr(library, "kernels_folder", lambda: folder)
    return folder


@needs_nvcc
def test_it_is_compiled_once_for_the_wanted_devices(one_kernel, tools):
    screen = io.StringIO()
    made = library.compiled(tools, screen, [80])
    assert "Compiling the CUDA kernels" in screen.getvalue() and "compiled in" in screen.getvalue()
    assert [path.name for path in tools.cache.iterdir()] == [made.name]
    assert library.compiled(tools, screen := io.StringIO(), [80]) == made and screen.getvalue() == ""
    assert ctypes.CDLL(str(made)).one() == 1
    (one_kernel / "one.h").write_text("#define ONE 2\n")
    assert library.compiled(tools, io.StringIO(), [80]) != made


@needs_nvcc
def test_what_nvcc_says_is_shown_and_nothing_is_left(one_kernel, tools):
    (one_kernel / "two.cu").write_text("__global__ void two() { missing(); }\n")
    with pytest.raises(UserError, match="(?s)CUDA kernels could not be compiled.*missing.*doctor"):
        library.compiled(tools, io.StringIO(), [80])
    assert not list(tools.cache.iterdir())


@pytest.mark.parametrize("known, wanted, code, ptx", [
    ((75, 80, 86, 89, 90, 120), [86], [86], 86),
    ((75, 80, 86, 89, 90), library.ARCHITECTURES, [75, 80, 86, 89, 90], 90),  # CUDA 11.8
    ((75, 80, 86, 89, 90, 100, 120), library.ARCHITECTURES, [75, 80, 86, 89, 90, 120], 120),
    ((75, 80, 86, 89, 90), [120], [], 90),  # a card newer than this CUDA
    ((), [86], [86], 86),  # an nvcc that does not list what it knows
])
def test_targets(known, wanted, code, ptx, monkeypatch):
    monkeypatch.setattr(library, "_say", lambda *_: "".join(f"compute_{number}\n" for number in known))
    assert library._targets(None, wanted) == [*(f"-gencode=arch=compute_{n},code=sm_{n}" for n in code),
                                              f"-gencode=arch=compute_{ptx},code=compute_{ptx}"]


@needs_nvcc
def test_the_device_is_asked(tools):
    """The fake runtime's device is an RTX 30."""
    assert library.capability(tools) == 86


@pytest.mark.parametrize("capability, precisions", [(75, ("fp32",)), (80, ("fp32", "bf16", "tf32")),
                                                    (120, ("fp32", "bf16", "tf32"))])
def test_precisions(capability, precisions, monkeypatch):
    monkeypatch.setattr(backend, "cuda_tools", lambda: None)
    monkeypatch.setattr(backend, "capability", lambda tools: capability)
    assert backend.precisions() == precisions


def test_without_cuda_it_goes_on_in_stock_jittor(tmp_path, monkeypatch, capsys):
    tools = library.CudaTools(tmp_path / "bin" / "nvcc", "g++", tmp_path)
    monkeypatch.setattr(library, "cuda_tools", lambda: tools)
    monkeypatch.setattr(backend, "library", library.library.__wrapped__)
    assert not backend.works()
    assert re.search("libcudart.so(?s:.*)Continuing without them", capsys.readouterr().err)


@needs_nvcc
@pytest.mark.slow
def test_all_kernels_compile_for_all_architectures(tools, monkeypatch):
    """Without warnings. Three and a half minutes on two cores."""
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-Werror=all-warnings"))
    kernels = ctypes.CDLL(str(library.compiled(tools, io.StringIO())))
    kernels.jl_device_problem.restype = ctypes.c_char_p
    assert kernels.jl_device_problem() is None  # a launch that the fake runtime accepts
    assert kernels.jl_launches() == 1
    sources = [*cuda.kernels_folder().glob("*.cu")]
    names = {name for path in sources for name in re.findall(r"^JL_OPERATOR\((\w+)\)", path.read_text(), re.MULTILINE)}
    assert {"linear_forward", "linear_backward"} <= names
    for name in names:
        assert hasattr(kernels, f"jl_operator_{name}")
