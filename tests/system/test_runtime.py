import json
import os
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cuda_toolkits import driver, toolkit
from jittor_lora.errors import UserError
from jittor_lora.system import cuda, machine, runtime


def python(code, environ=None, arguments=()):
    """Run `code` in a new interpreter with the warm cache; returns the finished process."""
    return subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, **(environ or {})}, universal_newlines=True, timeout=600)


def plain_environ(**values):
    return {"PATH": os.environ["PATH"], **values}


def executable(path, text="#!/bin/sh\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def switches(environ):
    return runtime.switches(environ, Path.home())


def test_switches_are_the_tested_ones():
    chosen = switches(plain_environ(nvcc_path=""))
    expected = {"nvcc_path": "", "use_mpi": "0", "log_silent": "1", "use_parallel_op_compiler": "0",
                "cache_name": "jittor_lora", "FIX_TORCH_ERROR": "0"}
    assert {name: chosen[name] for name in expected} == expected


def test_switches_keep_what_the_user_set():
    assert switches(plain_environ(log_silent="0", cache_name="mine", use_mpi="1"))["cache_name"] == "mine"


def test_the_allocator_needed_for_correct_results_cannot_be_turned_off():
    assert switches(plain_environ(nvcc_path="", use_sfrl_allocator="0"))["use_sfrl_allocator"] == "1"


def test_switches_use_mpi_under_mpirun():
    assert switches(plain_environ(nvcc_path="", OMPI_COMM_WORLD_SIZE="2"))["use_mpi"] == "1"


def test_switches_ignore_a_stray_nvcc(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "NVCC_PLACES", ("nvcc",))
    executable(tmp_path / "bin" / "nvcc")
    assert switches({"PATH": str(tmp_path / "bin")})["nvcc_path"] == ""


@pytest.fixture
def card(monkeypatch):
    """A GPU of capability 8.6, in a machine without CUDA."""
    for name in ("SYSTEM_HEADERS", "SYSTEM_LIBRARIES"):
        monkeypatch.setattr(cuda, name, Path("/none"))
    monkeypatch.setattr(cuda, "NVCC_PLACES", ("nvcc",))
    monkeypatch.setattr(cuda, "_packages", list)
    find = cuda.find
    monkeypatch.setattr(cuda, "find", lambda environ: find(environ, driver))


def test_switches_use_a_whole_toolkit_through_a_folder_of_ours(tmp_path, card, capsys):
    chosen = runtime.switches(plain_environ(nvcc_path=str(toolkit(tmp_path / "cuda", "13.0"))), tmp_path)
    assert chosen["nvcc_path"].startswith(str(tmp_path / ".cache" / "jittor" / "jittor_lora" / "cuda13.0-"))
    assert (chosen["conv_opt"], chosen["cache_name"]) == ("1", "jittor_lora")
    assert "cc_flags" not in chosen  # only while Jittor is imported
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("exported, chosen", [("0", "0"), (None, "1")])
def test_switches_leave_the_choice_of_cudnn_to_the_user(tmp_path, card, exported, chosen):
    environ = plain_environ(nvcc_path=str(toolkit(tmp_path / "cuda")), **({"conv_opt": exported} if exported else {}))
    assert runtime.switches(environ, tmp_path)["conv_opt"] == chosen


def test_a_card_that_is_not_used_is_no_secret(tmp_path, card, capsys):
    assert runtime.switches({"PATH": str(tmp_path)}, tmp_path)["nvcc_path"] == ""
    assert "CUDA is not used: no nvcc found" in capsys.readouterr().err
    assert runtime.switches({"PATH": str(tmp_path), "nvcc_path": ""}, tmp_path)["nvcc_path"] == ""
    assert capsys.readouterr().err == ""


def test_operators_are_compiled_side_by_side_and_without_fast_math(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 64)
    flags = SimpleNamespace(use_parallel_op_compiler=0, nvcc_flags=" -O2  --use_fast_math  -w ")
    runtime._set_cuda_flags(flags)
    assert flags.use_parallel_op_compiler == 16
    assert flags.nvcc_flags.split() == ["-O2", "-w"]


def test_switches_name_a_python_config_that_jittor_would_miss(monkeypatch, tmp_path):
    config = executable(tmp_path / f"python3.{sys.version_info.minor}-config")
    monkeypatch.setattr(machine, "jittor_python_configs", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr(sysconfig, "get_config_var", {"BINDIR": str(tmp_path)}.get)
    assert switches(plain_environ())["python_config_path"] == str(config)


def test_switches_limit_threads_to_a_containers_cores(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 1)
    monkeypatch.setattr(machine, "all_cores", lambda: 64)
    assert switches(plain_environ())["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in switches(plain_environ(OMP_NUM_THREADS="3"))


def test_jittor_home_is_found_as_jittor_finds_it(tmp_path):
    assert runtime.jittor_home({}, tmp_path) == tmp_path
    config = tmp_path / ".cache" / "jittor" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"JITTOR_HOME": str(tmp_path / "noted")}))
    assert runtime.jittor_home({}, tmp_path) == tmp_path / "noted"
    assert runtime.jittor_home({"JITTOR_HOME": str(tmp_path / "set")}, tmp_path) == tmp_path / "set"


def test_import_with_its_own_jittor_home_changes_no_other_process(tmp_path):
    done = python("""
import os, sys
from pathlib import Path
from jittor_lora.system import first_compile, runtime
class Stop(Exception):
    pass
def stop(mark, environ, screen, grouped):
    print(mark.is_relative_to(sys.argv[1]), environ["JITTOR_HOME"] == sys.argv[1])
    raise Stop
first_compile.compile_jittor = stop
before = dict(os.environ)
try:
    runtime.jt
except Exception as error:
    print(type(error.__cause__).__name__)
print({name for name in ("HOME", "JITTOR_HOME") if os.environ[name] != before[name]} or "as before")
""", {"HOME": str(tmp_path / "home"), "JITTOR_HOME": str(tmp_path / "other")}, arguments=[str(tmp_path / "other")])
    assert done.stdout.split("\n")[:3] == ["True True", "Stop", "as before"], done.stderr
    assert not list(tmp_path.glob("home/**/config.json"))


OPERATOR = """
import random
from jittor_lora.system.runtime import jt
x = jt.code((1,), "float32", cpu_src="{ %s *out0_p = " + str(random.random()) + "; }")
print(0 < x.item() < 1)
"""


@pytest.mark.parametrize("edited", ["", "// @begin replace \"a\" \"a\"\n// @end\n"])  # by one of Jittor's helpers
def test_an_operator_compiled_in_its_own_jittor_home_changes_no_other_process(tmp_path, edited):
    done = python(OPERATOR % edited.replace("\n", "\\n").replace('"', '\\"'),
                  {"HOME": str(tmp_path), "JITTOR_HOME": str(runtime.jittor_home())})
    assert done.stdout == "True\n", done.stderr
    assert not list(tmp_path.glob("**/config.json"))


def test_a_recorded_jittor_home_is_kept(tmp_path):
    """Jittor would overwrite it with the JITTOR_HOME of this one process."""
    note = tmp_path / ".cache" / "jittor" / "config.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"JITTOR_HOME": str(tmp_path / "noted")}))
    before = note.read_bytes()
    done = python("""
from jittor_lora.system import first_compile, runtime
def stop(mark, environ, screen, grouped):
    raise ZeroDivisionError
first_compile.compile_jittor = stop
try:
    runtime.jt
except Exception as error:
    print(type(error.__cause__).__name__)
""", {"HOME": str(tmp_path), "JITTOR_HOME": str(tmp_path)})
    assert done.stdout == "ZeroDivisionError\n", done.stderr
    assert note.read_bytes() == before


def test_processes_that_start_together_compile_once(tmp_path):
    """As ranks on one host do."""
    program = """
import importlib, sys, time
from jittor_lora.system import first_compile, runtime
class Warm(Exception):
    pass
def compiled(mark, environ, screen, grouped):
    time.sleep(0.5)
    (mark.parent / "jittor_core.so").touch()
    mark.touch()
    print("compiled")
def imported(name):
    if name == "jittor":
        raise Warm
    return inner(name)
first_compile.compile_jittor = compiled
inner, importlib.import_module = importlib.import_module, imported
try:
    runtime.jt
except Exception as error:
    print(type(error.__cause__).__name__)
"""
    environ = {**os.environ, "JITTOR_HOME": str(tmp_path / "home")}
    ranks = [subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, text=True)
             for _ in range(3)]
    said = sorted(rank.communicate(timeout=120)[0] for rank in ranks)
    assert said == ["Warm\n", "Warm\n", "compiled\nWarm\n"]


@pytest.mark.parametrize("cores, local, threads", [(8, 1, None), (8, 2, "4"), (8, 3, "2"), (8, 16, "1")])
def test_ranks_of_a_host_share_its_cores(cores, local, threads, monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    monkeypatch.setattr(machine, "all_cores", lambda: cores)
    job = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "32", "OMPI_COMM_WORLD_LOCAL_SIZE": str(local)}
    assert switches(plain_environ(nvcc_path="", **job)).get("OMP_NUM_THREADS") == threads
    assert "OMP_NUM_THREADS" not in switches(plain_environ(nvcc_path="", OMP_NUM_THREADS="3", **job))


def test_more_ranks_than_jittor_supports_are_refused_whatever_is_installed(tmp_path):
    done = python("from jittor_lora.system.runtime import jt", {
        "PATH": str(tmp_path), "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "129",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    assert "up to 128 ranks, found 129" in done.stderr


def test_import_leaves_the_process_as_it_was():
    done = python("""
import random, signal, ssl, sys
import numpy as np
random.seed(7); np.random.seed(7)
before = (random.getstate(), np.random.get_state()[1].tolist(), ssl._create_default_https_context,
          sys.getrecursionlimit(), sys.exit, sys.excepthook)
from jittor_lora.system.runtime import jt
after = (random.getstate(), np.random.get_state()[1].tolist(), ssl._create_default_https_context,
         sys.getrecursionlimit(), sys.exit, sys.excepthook)
assert before == after, [one == other for one, other in zip(before, after)]
assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
import subprocess
child = subprocess.Popen(["sleep", "60"]); child.kill(); child.wait()
print("alive", jt.flags.use_cuda)
""", {"nvcc_path": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["interrupted", "alive 0"]
    assert done.stderr == ""


def test_import_leaves_no_workers_behind():
    done = python("""
import multiprocessing, os
before = dict(os.environ)
from jittor_lora.system.runtime import jt
assert not multiprocessing.active_children()
assert {"DISABLE_MULTIPROCESSING", "JPY_PARENT_PID"}.isdisjoint(os.environ.keys() - before.keys())
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["jittor.compiler", "jittor.compile_extern"])  # before and after its handlers
def test_ctrl_c_during_the_import(module):
    done = python(f"""
import signal, sys
def hook(event, args):
    if event == "import" and args[0] == {module!r}:
        signal.raise_signal(signal.SIGINT)
sys.addaudithook(hook)
try:
    from jittor_lora.system.runtime import jt
except KeyboardInterrupt:
    print("interrupted")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_numpy_does_not_warn_about_its_limits_afterwards():
    done = python("""
import warnings
import numpy as np
from jittor_lora.system.runtime import jt
jt.exp(jt.zeros(3)).sync()
warnings.simplefilter("error")
np.finfo(np.float64), np.finfo(np.float32), np.finfo(np.float16)
""")
    assert done.returncode == 0, done.stderr


def test_https_checks_are_restored_if_jittor_was_imported_first(tmp_path):
    done = python("""
import ssl
import jittor_utils
assert ssl._create_default_https_context is ssl._create_unverified_context
from jittor_lora.system import first_compile, runtime
def stop(*arguments):  # the installed Jittor is imported, which may not be compiled
    raise ZeroDivisionError
first_compile.compile_jittor = stop
try:
    runtime.jt
except Exception as error:
    print(type(error.__cause__).__name__)
assert ssl._create_default_https_context is ssl.create_default_context
""", {"HOME": str(tmp_path), "log_silent": "1"})
    assert (done.returncode, done.stdout) == (0, "ZeroDivisionError\n"), done.stderr


def test_a_stray_nvcc_does_not_crash_the_import(tmp_path):
    executable(tmp_path / "bin" / "nvcc", "#!/bin/sh\necho 'Cuda compilation tools, release 12.2, V12.2.1'\n")
    done = python("from jittor_lora.system.runtime import jt", {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_everything_missing_is_named_in_one_error(tmp_path):
    done = python("""
import sys
from jittor_lora import errors
from jittor_lora.system import diagnostics
diagnostics._version = lambda name: {"numpy": "2.1.0", "jittor": "1.3.11.0"}[name]
try:
    from jittor_lora.system.runtime import jt
except errors.UserError as error:
    print(error)
""", {"PATH": str(tmp_path), "nvcc_path": str(tmp_path / "nvcc"), "JITTOR_HOME": str(tmp_path), "cc_path": ""})
    for part in ("numpy: 2.1.0", 'pip install "numpy<2"', "C++ compiler: no g++", "apt-get install g++",
                 "yum install gcc-c++", "conda-forge", "CUDA: nvcc_path", "jittor-lora doctor"):
        assert part in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.glob(".cache/jittor/jt*"))


def test_plain_functions_do_not_import_jittor():
    done = python("import sys; from jittor_lora.system import runtime; runtime.jittor_home(); runtime.system_info()\n"
                  "assert 'jittor' not in sys.modules and 'jittor_utils' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing_like_this"):
        runtime.nothing_like_this  # noqa: B018


def test_threads_are_set_and_used():
    before = runtime.threads()
    try:
        runtime.set_threads(1)
        assert runtime.threads() == 1
    finally:
        runtime.set_threads(before)
    assert runtime.threads() == before


@pytest.mark.parametrize("count", [0, -1])
def test_threads_must_be_positive(count):
    with pytest.raises(UserError, match=f"found {count}"):
        runtime.set_threads(count)


def test_matrix_products_are_correct():
    a, b = np.random.RandomState(0).randn(2, 64, 64).astype(np.float32)
    np.testing.assert_allclose(runtime.jt.matmul(runtime.jt.array(a), runtime.jt.array(b)).numpy(), a @ b, atol=1e-4)


def test_system_info_is_plain_data():
    info = runtime.system_info()
    assert json.loads(json.dumps(info)) == info
    assert info["numpy"] == np.__version__
    assert info["cores"] >= 1 and info["memory_gib"] > 0
