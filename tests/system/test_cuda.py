import sys

import pytest

from cuda_toolkits import HEADERS, LIBRARIES, card, driver, executable, files, find, nvcc_at, toolkit
from jittor_lora.system import cuda
from jittor_lora.system.cuda_driver import Driver


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch, tmp_path):
    """No CUDA in the system's folders, none of NVIDIA's packages, and g++ 12."""
    for name in ("SYSTEM_HEADERS", "SYSTEM_LIBRARIES"):
        monkeypatch.setattr(cuda, name, tmp_path / "system" / name)
    monkeypatch.setattr(cuda, "NVCC_PLACES", ("nvcc",))
    monkeypatch.setattr(cuda.machine, "compiler", lambda environ: "/usr/bin/g++")
    monkeypatch.setattr(cuda.machine, "version_of", lambda program: "12.2.0")
    monkeypatch.setattr(cuda, "_packages", list)


@pytest.mark.parametrize("release", ["11.8", "12.4", "13.0"])
@pytest.mark.parametrize("folder", ["lib64", "lib", "targets/x86_64-linux/lib"])  # conda has no lib64
def test_a_whole_toolkit_is_usable(tmp_path, release, folder):
    found = find(toolkit(tmp_path / "cuda", release, folder=folder))
    assert found.usable, found.problem
    assert (found.version, found.build) == (release, f"{release}.99")
    assert found.libraries["cublas"] == tmp_path / "cuda" / folder / "libcublas.so"
    assert 90 in found.archs


def test_headers_below_targets_are_found(tmp_path):
    nvcc = toolkit(tmp_path / "conda", headers=())
    files(tmp_path / "conda" / "targets" / "x86_64-linux" / "include", HEADERS)
    found = find(nvcc)
    assert found.usable, found.problem
    assert found.headers == (tmp_path / "conda" / "targets" / "x86_64-linux" / "include",)


def test_system_folders_count_and_are_not_listed(tmp_path):
    files(cuda.SYSTEM_HEADERS, HEADERS)
    files(cuda.SYSTEM_LIBRARIES, [f"lib{name}.so" for name in LIBRARIES])
    found = find(nvcc_at(tmp_path / "debian", "11.8"))
    assert found.usable and found.headers == ()
    assert found.libraries["curand"].parent == cuda.SYSTEM_LIBRARIES


def test_a_script_that_starts_another_nvcc_is_followed(tmp_path):
    real = toolkit(tmp_path / "cuda-12.4")
    starter = executable(tmp_path / "bin" / "nvcc", f'#!/bin/sh\nexec {real} "$@"\n')
    (tmp_path / "link").symlink_to(starter)
    for nvcc in (starter, tmp_path / "link"):
        assert find(nvcc).usable
        assert find(nvcc).libraries["cudart"] == tmp_path / "cuda-12.4" / "lib64" / "libcudart.so"


def test_a_usable_one_later_on_the_list_is_found(tmp_path, monkeypatch):
    stray, whole = toolkit(tmp_path / "stray", libraries=()), toolkit(tmp_path / "cuda")
    monkeypatch.setattr(cuda, "NVCC_PLACES", (str(stray), str(whole)))
    assert cuda.find({"PATH": str(tmp_path)}, driver).nvcc == str(whole)


@pytest.mark.parametrize("lacking", [*(f"lib{name}.so" for name in LIBRARIES), "cuda_runtime.h", "cublas_v2.h",
                                     "cublasLt.h", "curand.h"])
def test_each_missing_part_is_named(tmp_path, lacking):
    found = find(toolkit(tmp_path / "cuda", headers=[name for name in HEADERS if name != lacking],
                         libraries=[name for name in LIBRARIES if f"lib{name}.so" != lacking]))
    assert not found.usable
    assert found.lacking == (lacking,)
    assert found.problem == f"{lacking} not found"


def test_all_that_is_missing_is_named_at_once(tmp_path):
    found = find(toolkit(tmp_path / "cuda", headers=("cuda_runtime.h",), libraries=("cudart",)))
    assert set(found.lacking) == {"libcublas.so", "libcublasLt.so", "libcurand.so", "cublas_v2.h", "cublasLt.h",
                                  "curand.h"}


@pytest.mark.parametrize("release, having, gcc, problem", [
    ("10.2", driver(), 15, "older than 11"),
    ("unknown", driver(), 15, "does not run"),
    ("13.0", driver((12, 4)), 15, "the driver runs CUDA up to 12.4, and this is 13.0"),
    ("12.4", driver((12, 2)), 15, ""),  # minor versions are compatible
    ("13.0", driver((13, 0), 7.0), 15, "no longer compiles for the NVIDIA GeForce (compute capability 7.0, as V100"),
    ("12.4", driver((13, 0), 7.0), 15, ""),
    ("11.8", driver((12, 8), 12.0), 15, ""),  # the driver compiles PTX
    ("11.8", driver(), 11, "compiles with g++ up to 11, and this is 12.2.0"),
    ("12.4", driver(), 12, ""),
])
def test_parts_that_do_not_go_together(tmp_path, release, having, gcc, problem):
    found = find(toolkit(tmp_path / "cuda", release, gcc=gcc), having=having)
    assert found.usable == (not problem)
    assert problem in found.problem


def test_no_driver_no_device_no_nvcc(tmp_path):
    nvcc = toolkit(tmp_path / "cuda")
    assert find(nvcc, having=Driver(problem="no NVIDIA driver")).problem == "no NVIDIA driver"
    assert find(tmp_path / "none").problem == "no nvcc found"
    assert find(tmp_path / "none").cards == (card(),)
    assert cuda.find({"nvcc_path": ""}, driver) == cuda.Cuda()


def test_packages_of_cuda_13_beside_another_toolkit_of_the_same_release(tmp_path, monkeypatch):
    cu13 = tmp_path / "nvidia" / "cu13"
    files(cu13 / "include", HEADERS[1:])
    files(cu13 / "lib", ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"])
    monkeypatch.setattr(cuda, "_packages", lambda: [cu13])
    assert find(toolkit(tmp_path / "13", "13.0", HEADERS[:1], ["cudart"])).usable
    assert not find(toolkit(tmp_path / "12", "12.4", HEADERS[:1], ["cudart"])).usable  # not those of another release


@pytest.mark.parametrize("release, usable", [("12.4", True), ("11.8", False), ("13.0", False)])
def test_packages_of_cuda_12_that_torch_brings(tmp_path, monkeypatch, release, usable):
    for name, headers, library in (("cublas", HEADERS[1:4], ["libcublas.so.12", "libcublasLt.so.12"]),
                                   ("curand", HEADERS[4:], ["libcurand.so.10"]),
                                   ("cuda_runtime", HEADERS[:1], ["libcudart.so.12"])):
        files(tmp_path / "nvidia" / name / "include", headers)
        files(tmp_path / "nvidia" / name / "lib", library)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(cuda, "_packages", PACKAGES)
    assert find(nvcc_at(tmp_path / "minimal", release)).usable == usable


PACKAGES = cuda._packages  # pytest's fixture replaces it


def test_an_environment_of_packages_alone(tmp_path, monkeypatch):
    home = tmp_path / "nvidia" / "cu13"
    nvcc = nvcc_at(home, "13.0")
    files(home / "include", HEADERS)
    files(home / "lib", ["libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"])
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(cuda, "_packages", PACKAGES)
    found = cuda.find({"PATH": str(tmp_path)}, driver)
    assert found.usable, found.problem
    assert found.nvcc == str(nvcc)


CONVOLUTIONS = [f"lib{name}.so" for name in cuda.FOR_CONVOLUTIONS]


@pytest.mark.parametrize("major, header, libraries, enough", [
    (8, "cudnn_version.h", CONVOLUTIONS, True),
    (8, "cudnn.h", CONVOLUTIONS, True),  # before 8.0 the numbers were there
    (9, "cudnn_version.h", CONVOLUTIONS, False),
    (8, "cudnn_version.h", CONVOLUTIONS[:-1], False),
])
def test_cudnn_8_with_all_its_parts_serves_convolutions(tmp_path, major, header, libraries, enough):
    nvcc = toolkit(tmp_path / "cuda")
    files(tmp_path / "cuda" / "include", ["cudnn.h", "cufft.h", "cusparse.h"])
    files(tmp_path / "cuda" / "lib64", libraries)
    (tmp_path / "cuda" / "include" / header).write_text(
        f"#define CUDNN_MAJOR {major}\n#define CUDNN_MINOR 9\n#define CUDNN_PATCHLEVEL 7\n")
    found = find(nvcc)
    assert (found.convolutions, found.cudnn) == (enough, f"{major}.9.7")
