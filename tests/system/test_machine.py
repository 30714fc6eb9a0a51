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


@pytest.mark.parametrize("release, wsl", [("5.15.167.4-microsoft-standard-WSL2", True), ("6.1.0-37-amd64", False)])
def test_windows_linux_is_known_by_its_kernel(tmp_path, release, wsl):
    (tmp_path / "osrelease").write_text(release)
    assert machine.is_wsl(tmp_path / "osrelease") == wsl
    assert not machine.is_wsl(tmp_path / "none")
