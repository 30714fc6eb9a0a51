import shutil
import stat
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from jittor_lora.system import core_units
from jittor_lora.system.runtime import kernel_tools

JITTOR = Path(str(metadata.distribution("jittor").locate_file("jittor")))


def test_every_source_file_is_in_one_unit():
    named = [name for unit in core_units.units(JITTOR) for name in unit]
    assert len(named) == len(set(named))
    sources = {path.relative_to(JITTOR).as_posix() for path in (JITTOR / "src").rglob("*.cc")}
    assert {name for name in named if name.startswith("src/")} == sources - set(core_units._HELPER)
    assert all((JITTOR / name).is_file() for name in named if name.startswith("extern/"))
    generated = {f"gen/{path.name}" for path in (kernel_tools().cache / "gen").glob("*.cc")}
    assert {name for name in named if name.startswith("gen/")} == generated


def test_units_keep_the_order_of_initialisation():
    files_of = {unit[0]: unit for unit in core_units.units(JITTOR)}
    assert files_of["src/ops/op_register.cc"] == ["src/ops/op_register.cc"]  # before generated code
    assert files_of["src/ops/op_utils.cc"] == ["src/ops/op_utils.cc"]  # after generated code
    assert files_of["src/profiler/profiler.cc"][-1] == "src/executor.cc"
    for first in files_of.keys() - {"src/init.cc", "src/profiler/profiler.cc"}:  # its fixed first and last files
        of_src_itself = {name.count("/") == 1 for name in files_of[first] if name.startswith("src/")}
        assert len(of_src_itself) <= 1, "files of src/ come before those of its subfolders"


def test_names_shared_by_two_files_are_told_apart(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.cc").write_text("static auto make = 1;\nstatic int only_here(int x) {}\n")
    (tmp_path / "src" / "b.cc").write_text("static auto make = 2;\n")
    text = core_units._text(["src/a.cc", "src/b.cc"], tmp_path)
    assert text.splitlines()[1:] == ["#define make make_0", '#include <a.cc>', "#undef make",
                                     "#define make make_1", '#include <b.cc>', "#undef make"]


@pytest.fixture
def compiler(tmp_path):
    """The program as Jittor calls it, wrapping a compiler that prints its arguments."""
    real = tmp_path / "real" / "g++"
    for path, text in ((real, '#!/bin/sh\nprintf "%s|" "$@"\n[ "$FAIL" ] && exit 3\n'
                              'for output; do :; done; [ "$MAKE" ] && : > "$output"; exit 0\n'),
                       (tmp_path / "copy" / "bin" / "g++", core_units.program(str(real)))):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    core_units.write(tmp_path / "copy" / "units", JITTOR)
    units = f"{tmp_path}/copy/bin/../units"

    def call(*arguments, **environ):
        done = subprocess.run([str(tmp_path / "copy" / "bin" / "g++"), *arguments], stdout=subprocess.PIPE, text=True,
                              env={"PATH": "/usr/bin:/bin", **environ})
        return done.returncode, done.stdout.replace(units, "UNITS").rstrip("|").split("|")

    return call


@pytest.mark.parametrize("source, unit, level", [
    ("/env/jittor/src/ops/op_register.cc", "UNITS/src/ops/op_register.cc", "-O1"),
    ("/env/jittor/src/event_queue.cc", "UNITS/src/event_queue.cc", "-O0"),  # empty
    ("/cache/gen/pyjt_all.cc", "UNITS/gen/pyjt_all.cc", "-O0"),
    ("/env/jittor/extern/mkl/ops/mkl_conv_op.cc", "UNITS/extern/mkl/ops/mkl_conv_op.cc", "-O1"),
])
def test_a_file_of_the_core_becomes_its_unit(compiler, source, unit, level):
    assert compiler(source, "-O2", "-c", "-o", "/cache/obj_files/x.o") == (
        0, [unit, "-O2", "-c", "-o", "/cache/obj_files/x.o", level])


@pytest.mark.parametrize("arguments", [
    ["--version"],
    ["/env/jittor/src/new_in_this_version.cc", "-O2", "-c", "-o", "/cache/obj_files/x.o"],
    ["/cache/custom_ops/gen_ops.cc", "-O2", "-c", "-o", "/cache/obj_files/x.o"],
    ["/cache/jit/some op_op.cc", "-Ofast", "-o", "/cache/jit/some_op.so"],
    ["/cache/obj_files/a.o", "-shared", "-o", "/cache/jittor_core.so"],
])
def test_everything_else_is_compiled_unchanged(compiler, arguments):
    assert compiler(*arguments) == (0, arguments)


def test_the_helper_is_compiled_once_though_jittor_asks_twice(compiler, tmp_path):
    output = str(tmp_path / "jit_utils_core.cpython.so")
    command = [*(f"/env/jittor/src/utils/{name}.cc" for name in ("log", "tracer")), "-I/a b", "-O2", "-o", output]
    assert compiler(*command, FAIL="1")[0] == 3
    Path(output).touch()
    assert compiler(*command) == (0, ["UNITS/helper.cc", "-I/a b", "-O2", "-o", output, "-O1"])
    assert compiler(*command) == (0, [""])
    assert compiler(*command, "-g")[1] != [""]
    Path(output).unlink()
    assert compiler(*command)[1] != [""]


def test_jittors_data_is_compiled_at_o1(compiler):
    command = ["-Wall", "-O2", "-include", "/env/vdp", "/cache/data.cc", "-c", "-o", "/cache/data.o"]
    assert compiler(*command) == (0, [*command, "-O1"])


def test_a_failure_is_passed_on(compiler):
    assert compiler("/cache/gen/pyjt_all.cc", "-c", "-o", "/cache/obj_files/x.o", FAIL="1")[0] == 3


def test_file_by_file_after_a_failure(compiler, tmp_path):
    (tmp_path / "copy" / "units" / core_units.PLAIN).touch()
    for command in (["/cache/gen/pyjt_all.cc", "-O2", "-c", "-o", "/cache/obj_files/x.o"],
                    ["-O2", "/cache/data.cc", "-c", "-o", "/cache/data.o"],
                    ["/env/jittor/src/utils/log.cc", "-o", "/cache/jit_utils_core.so"]):
        assert compiler(*command) == (0, command)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_units_compile(name, tmp_path):
    if not shutil.which(name):
        pytest.skip(f"needs {name}")
    tools = kernel_tools()
    jittor = Path(sys.modules["jittor"].__file__).parent  # the copy that generated files refer to
    core_units.write(tmp_path, jittor)
    flags = ["-std=c++14", "-fPIC", "-w", "-fsyntax-only", f"-I{jittor}/src", f"-I{jittor}/extern",
             f"-I{sysconfig.get_path('include')}", f"-I{tools.cache}", f"-I{tools.onednn / 'include'}",
             f"-I{jittor}/extern/mkl/ops"]
    for source in [*(unit[0] for unit in core_units.units(jittor)), "helper.cc"]:
        done = subprocess.run([name, str(tmp_path / source), *flags], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr[:2000]
