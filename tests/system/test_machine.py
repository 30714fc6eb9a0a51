import stat

import pytest

from jittor_lora.system import machine

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu avx avx2 avx512_bf16

processor\t: 1
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu avx
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def cuda_at(prefix, release="12.2", libraries=("cudart", "cublas", "curand")):
    (prefix / "lib64").mkdir(parents=True)
    for name in libraries:
        (prefix / "lib64" / f"lib{name}.so").touch()
    nvcc = executable(prefix / "bin" / "nvcc", f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V1'\n")
    return str(nvcc)


def test_cpu_facts_are_the_first_processors(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert machine.cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2.00GHz"
    assert machine.cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx", "avx2", "avx512_bf16"}


def test_cpu_facts_where_nothing_can_be_read(tmp_path):
    assert machine.cpu_model(tmp_path / "none") == "unknown"
    assert machine.cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize("text, most", [("100000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", None)])
def test_cores_respect_a_cgroup_2_quota(tmp_path, text, most):
    (tmp_path / "cpu.max").write_text(text)
    assert machine.available_cores(tmp_path) == (most or machine.available_cores(tmp_path / "none"))


@pytest.mark.parametrize("quota, most", [("100000", 1), ("-1", None)])
def test_cores_respect_a_cgroup_1_quota(tmp_path, quota, most):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine.available_cores(tmp_path) == (most or machine.available_cores(tmp_path / "none"))


def test_version_of_a_program(tmp_path):
    gcc = executable(tmp_path / "g++", "#!/bin/sh\necho 'g++ (Debian 12.2.0-14) 12.2.0'\n")
    assert machine.version_of(str(gcc)) == "12.2.0"
    assert machine.version_of(str(executable(tmp_path / "bad", "#!/bin/sh\nexit 1\n"))) == ""
    assert machine.version_of(str(tmp_path / "none")) == ""


def test_the_compiler_is_the_users_or_gcc(tmp_path):
    gcc = executable(tmp_path / "g++", "#!/bin/sh\n")
    mine = executable(tmp_path / "my-g++", "#!/bin/sh\n")
    assert machine.compiler({"PATH": str(tmp_path)}) == str(gcc)
    assert machine.compiler({"PATH": str(tmp_path), "cc_path": str(mine)}) == str(mine)
    assert machine.compiler({"PATH": str(tmp_path / "none")}) == ""


def test_header_of_python_is_looked_for_where_the_config_points(tmp_path):
    config = str(executable(tmp_path / "config", f"#!/bin/sh\necho -I{tmp_path}/a -I{tmp_path}/b\n"))
    assert not machine.has_python_header(config)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Python.h").touch()
    assert machine.has_python_header(config)
    assert not machine.has_python_header(str(tmp_path / "none"))


@pytest.fixture
def driver(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "driver_problem", lambda: "")
    monkeypatch.setattr(machine, "SYSTEM_LIBRARIES", tmp_path / "none")


def test_cuda_with_its_runtime_is_usable(tmp_path, driver):
    nvcc = cuda_at(tmp_path / "cuda")
    assert machine.find_cuda({"nvcc_path": nvcc}) == machine.Cuda(nvcc, "12.2")
    assert machine.find_cuda({"nvcc_path": nvcc}).usable


def test_cuda_later_on_the_list_is_found(tmp_path, driver, monkeypatch):
    stray, whole = cuda_at(tmp_path / "stray", libraries=()), cuda_at(tmp_path / "cuda")
    monkeypatch.setattr(machine, "NVCC_PLACES", (stray, whole))
    assert machine.find_cuda({"PATH": str(tmp_path)}).nvcc == whole


def test_cuda_behind_a_link_is_usable(tmp_path, driver):
    cuda_at(tmp_path / "cuda")
    (tmp_path / "nvcc").symlink_to(tmp_path / "cuda" / "bin" / "nvcc")
    assert machine.find_cuda({"nvcc_path": str(tmp_path / "nvcc")}).usable


@pytest.mark.parametrize("options, problem", [({"libraries": ()}, "libcudart.so is missing"),
                                              ({"libraries": ["cudart"]}, "libcublas.so is in none of"),
                                              ({"release": "10.2"}, "older than 11"),
                                              ({"release": "unknown"}, "does not run")])
def test_cuda_that_cannot_be_used_says_why(tmp_path, driver, options, problem):
    cuda = machine.find_cuda({"nvcc_path": cuda_at(tmp_path / "cuda", **options)})
    assert not cuda.usable
    assert problem in cuda.problem


def test_cuda_without_a_driver_is_not_usable(tmp_path):
    assert "cannot be loaded" in machine.driver_problem("libno_such_driver.so.1")
    assert not machine.find_cuda({"PATH": str(tmp_path), "nvcc_path": str(tmp_path / "none")}).usable
