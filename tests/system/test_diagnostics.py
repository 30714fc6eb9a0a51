import platform
import subprocess
import sys
import threading
import time

import pytest

from jittor_lora.system import diagnostics
from jittor_lora.system.diagnostics import GIB, MISSING, OK, WARNING


@pytest.mark.parametrize("version, status", [((3, 8, 18), MISSING), ((3, 9, 0), OK), ((3, 12, 9), OK),
                                             ((3, 13, 0), MISSING)])
def test_python(version, status):
    assert diagnostics.check_python(version).status == status


@pytest.mark.parametrize("version, status", [(None, MISSING), ("1.26.4", OK), ("2.0.0", MISSING)])
def test_numpy(version, status):
    check = diagnostics.check_numpy(version)
    assert check.status == status
    assert ("numpy<2" in check.mend) == (status == MISSING)


@pytest.mark.parametrize("version, status", [(None, MISSING), ("1.3.11.0", OK), ("1.3.110.0", WARNING),
                                             ("1.3.9.5", WARNING)])
def test_jittor(version, status):
    assert diagnostics.check_jittor(version).status == status


@pytest.mark.parametrize("path, version, status", [("", "", MISSING), ("/usr/bin/g++", "", MISSING),
                                                   ("/usr/bin/g++", "12.2.0", OK)])
def test_compiler(path, version, status):
    check = diagnostics.check_compiler(path, version)
    assert check.status == status
    assert ("g++" in check.mend) == (status == MISSING)


@pytest.mark.parametrize("config, header, status", [("", False, MISSING), ("/usr/bin/c", False, MISSING),
                                                    ("/usr/bin/c", True, OK)])
def test_headers(config, header, status):
    check = diagnostics.check_headers(config, header)
    assert check.status == status
    assert (f"python3.{sys.version_info.minor}-dev" in check.mend) == (status == MISSING)


@pytest.mark.parametrize("placed, problem, served, status", [
    (True, "", True, OK), (True, "none", False, OK), (False, "", True, OK), (False, "none", True, MISSING),
    (False, "none", False, WARNING)])
def test_onednn(placed, problem, served, status):
    check = diagnostics.check_onednn(placed, problem, served)
    assert check.status == status
    assert ("pip install" in check.mend) == (status == MISSING)


@pytest.mark.parametrize("free, status", [(8 * GIB, OK), (3 * GIB, WARNING), (GIB // 2, MISSING)])
def test_disk(tmp_path, free, status):
    check = diagnostics.check_disk("disk", tmp_path, free, 4 * GIB)
    assert check.status == status
    assert str(tmp_path) in check.found


@pytest.mark.parametrize("total, status", [(GIB, MISSING), (4 * GIB, WARNING), (16 * GIB, OK)])
def test_memory(total, status):
    assert diagnostics.check_memory(total).status == status


def test_cores():
    assert diagnostics.check_cores(8, 8).found == "8"
    assert diagnostics.check_cores(2, 64).found == "2 of 64 usable"


@pytest.mark.parametrize("flags, x86, status, text", [
    ({"avx", "avx2", "avx512_bf16"}, True, OK, "avx512_bf16)"), ({"avx", "avx2"}, True, OK, "no bf16"),
    ({"avx"}, True, WARNING, "AVX2"), (set(), False, OK, "Some CPU")])
def test_processor(flags, x86, status, text):
    check = diagnostics.check_cpu("Some CPU", frozenset(flags), x86)
    assert check.status == status
    assert text in check.found


@pytest.mark.parametrize("mpicc, ranks, status", [("", None, WARNING), ("", "2", MISSING), ("/usr/bin/mpicc", "2", OK)])
def test_mpi(mpicc, ranks, status):
    assert diagnostics.check_mpi(mpicc, ranks).status == status


def test_fonts():
    assert diagnostics.check_fonts(["DejaVu Sans"]).status == WARNING
    assert diagnostics.check_fonts(["DejaVu Sans", "Noto Sans CJK SC"]).found == "Noto Sans CJK SC"


def test_import_result():
    assert diagnostics.check_import(0, "noise\nworks; 2 ms\n").found == "works; 2 ms"
    assert diagnostics.check_import(-11, "") == diagnostics.check_import(-11, " \n")
    assert diagnostics.check_import(1, "no g++").status == MISSING


def test_a_hub_that_answers_and_one_that_does_not(monkeypatch):
    assert diagnostics.check_hub("https://hub", "").status == OK
    assert diagnostics.check_hub("https://hub", "refused").status == WARNING
    assert "refused" in diagnostics.hub_problem("http://127.0.0.1:9").lower()


def test_the_hub_is_not_waited_for_beyond_the_timeout(monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: asked.wait(60) and _refuse())
    start = time.monotonic()
    assert diagnostics.hub_problem("https://hub", 0.1) == "no answer within 0.1 s"
    assert time.monotonic() - start < 10
    asked.set()


def _refuse():
    raise OSError("refused")


@pytest.mark.parametrize("version, compiled", [("2.7.18", False), (platform.python_version(), True)])
def test_the_cache_counts_as_compiled_with_a_marker_for_this_python(tmp_path, version, compiled):
    assert not diagnostics.is_compiled(tmp_path)
    cache = tmp_path / "jt1.3.11" / "g++12.2.0" / f"py{version}" / "Linux" / "CPU" / "2017" / "jittor_lora"
    cache.mkdir(parents=True)
    (cache / "compiled-0").touch()
    assert diagnostics.is_compiled(tmp_path) == compiled


def test_required_and_machine_checks_run_here(tmp_path):
    environ = {"PATH": str(tmp_path), "nvcc_path": ""}
    required = {check.name: check for check in diagnostics.required(environ, tmp_path)}
    assert required["Python"].status == OK
    assert required["C++ compiler"].status == MISSING
    names = [check.name for check in diagnostics.machine_checks(environ, tmp_path, tmp_path / "not" / "yet")]
    assert len(names) == len(set(names))
    assert set(required) <= set(names)


def test_a_fixed_use_mkl_is_named(tmp_path):
    checks = diagnostics.required({"PATH": str(tmp_path), "use_mkl": "0", "nvcc_path": ""}, tmp_path)
    assert next(check for check in checks if check.name == "oneDNN").mend == "unset use_mkl"


def test_nothing_here_imports_jittor():
    code = ("import sys; from jittor_lora.cli import doctor; from jittor_lora.system import diagnostics, runtime\n"
            "from pathlib import Path\n"
            "diagnostics.machine_checks(runtime.environment(), runtime.jittor_home(), Path.cwd())\n"
            "assert 'jittor' not in sys.modules and 'jittor_utils' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
