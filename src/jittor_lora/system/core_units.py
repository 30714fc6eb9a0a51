"""Compiles Jittor's core as a few large units: most of its compile time is parsing the same headers 160 times.

Jittor asks its compiler for one object per source file. The program written here stands in for that compiler: for the
first file of a unit it compiles all files of the unit, for the others an empty file. Jittor links the same code as
before, and none of its files is changed. This applies only to the version it was tested with, without CUDA.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Iterable, Sequence

VERSION = "1.3.11"
PLAIN = "plain"  # if a file of this name exists beside the program: compile file by file, as Jittor does

# Static variables are initialised in the order of Jittor's list of files: the registry, generated files, its fixed
# beginning, files of `src/` itself, of its folders, its fixed end. A unit takes the place of its first file.
_BEGINNING = (("src/ops/op_register.cc",), ("src/ops/op_utils.cc",),
              ("src/init.cc", "src/event_queue.cc", "src/mem/allocator/sfrl_allocator.cc", "src/mem/allocator.cc",
               "src/misc/nano_string.cc"))
_END = ("src/profiler/profiler.cc", "src/executor.cc")
_BINDINGS = tuple(f"gen/pyjt_{name}.cc" for name in (
    "all", "allocator", "core", "cuda_flags", "grad", "graph", "hash", "init", "jit_tests", "lock", "mem_info",
    "memory_profiler", "miniz", "nano_string", "nano_vector", "op_compiler", "profiler", "py_ring_buffer",
    "py_var_tracer_interface", "var_slices"))
# Files for which `use_cuda` is a variable; headers that the others include make it a constant.
_FLAGS = ("src/type/fp16_op_type.cc", "src/type/common_op_type.cc", "src/pyjt/py_array_op.cc",
          "src/misc/cuda_flags.cc", "gen/pyjt_jit_flags.cc")
_SEPARATE = ("gen/pyjt_jit_op_maker.cc", "src/op_compiler.cc")  # large; and includes a header without a guard
_ONEDNN = tuple([f"extern/mkl/ops/{name}" for name in unit] for unit in (
    ("mkl_conv_op.cc", "mkl_matmul_op.cc", "mkl_test_op.cc"), ("cpu_cnn_inference_f32.cpp",),
    ("mkl_conv_backward_w_op.cc",), ("mkl_conv_backward_x_op.cc",)))  # each defines a function of the same name
_HELPER = tuple(f"src/utils/{name}.cc" for name in ("cache_compile", "log", "tracer", "jit_utils", "str_utils"))
_HALVED = ("src/ops/", "src/opt/")  # so that two cores share them
_APART = (*_HALVED, "src/test/", "src/pybind/", "src/pyjt/")
_COLD_FILES = ("src/opt/", "src/test/", "src/pybind/", "gen/pyjt_", "extern/mkl/ops/cpu_cnn")

_LEAVES_MACROS = "src/pyjt/numpy.cc"  # macros named like standard library functions: must come last
_STATIC = re.compile(r"^static\s+(?:inline\s+)?[\w:<>,\s*&]*?\b(\w+)\s*[=(;{]", re.MULTILINE)
_DECLARED_ELSEWHERE = ("isvar",)  # static in one file, and declared by a header that another file of the unit includes

_PROGRAM = r"""#!/bin/sh
# The C++ compiler, for Jittor: see system/core_units.py of jittor-lora.
compiler={compiler}
units=${{0%/*}}/../units
case $1 in
*.cc | *.cpp) ;;
*) # Jittor's own data.cc has its flags first
    case "$*" in
    *" -O2 "*"/data.cc -c -o "*) [ -e "$units/{plain}" ] || set -- "$@" -O1 ;;
    esac
    exec "$compiler" "$@" ;;
esac
[ -e "$units/{plain}" ] && exec "$compiler" "$@"
for output; do :; done
case $output in
*/jit_utils_core*.so) # asked for twice, by the same command
    command=$*
    [ -f "$output" ] && [ "$(cat "$output.command" 2> /dev/null)" = "$command" ] && exit 0
    for word; do
        shift
        case $word in *.cc) ;; *) set -- "$@" "$word" ;; esac
    done
    "$compiler" "$units/helper.cc" "$@" {level} || exit
    printf %s "$command" > "$output.command"
    exit ;;
*/obj_files/*.o) ;;
*) exec "$compiler" "$@" ;;
esac
case $1 in
*/jittor/src/*) source=src/${{1##*/jittor/src/}} ;;
*/jittor/extern/*) source=extern/${{1##*/jittor/extern/}} ;;
*/gen/*) source=gen/${{1##*/gen/}} ;;
*) exec "$compiler" "$@" ;;
esac
[ -f "$units/$source" ] || exec "$compiler" "$@"
shift
read -r comment level < "$units/$source" # of the first file of a unit; the others' are empty
exec "$compiler" "$units/$source" "$@" ${{level:-{cold}}}
"""
# The core builds graphs and generates code; numbers are computed elsewhere, so -O1 costs no measurable speed. Neither
# does -O0 for code off the path of a step: passes of the code generator, tests, and bindings, called once per operator.
_LEVEL, _COLD = "-O1", "-O0"


def program(compiler: str) -> str:
    """The program that Jittor uses as its compiler; it is placed in a folder beside `units`."""
    return _PROGRAM.format(compiler=shlex.quote(compiler), plain=PLAIN, level=_LEVEL, cold=_COLD)


def units(jittor: Path) -> list[list[str]]:
    """The files compiled together: paths below `jittor`, Jittor's package, or in `gen/` of its cache."""
    assigned = {name for unit in (*_BEGINNING, _END, _FLAGS, _SEPARATE, _HELPER) for name in unit}
    sources = sorted(path.relative_to(jittor).as_posix() for path in (jittor / "src").rglob("*.cc"))
    folders: dict[str, list[str]] = {}
    for name in sources:
        if name not in assigned and "__data__" not in name:
            folder = next((each for each in _APART if name.startswith(each)), "src/" if name.count("/") == 1 else "")
            folders.setdefault(folder, []).append(name)
    for names in folders.values():
        names.sort(key=_LEAVES_MACROS.__eq__)
    halves = [half for folder in _HALVED for half in _halves(folders.pop(folder, []))]
    return [list(unit) for unit in (*_BEGINNING, _BINDINGS, *([name] for name in _SEPARATE), _FLAGS, *folders.values(),
                                    *halves, _END, *_ONEDNN) if unit]


def write(folder: Path, jittor: Path) -> None:
    """Write into `folder` a stand-in for each source file of the core: a unit's first file includes all the others."""
    for unit in units(jittor):
        for name in unit:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_text(unit, jittor) if name == unit[0] else "", encoding="utf-8")
    (folder / "helper.cc").write_text(_text(_HELPER, jittor), encoding="utf-8")


def objects(jittor: Path) -> list[str]:
    """The files in Jittor's cache that account for the time of the first compile, in order of creation."""
    return ["jit_utils_core*.so", "data.o", *(f"obj_files/{Path(unit[0]).name}.o" for unit in units(jittor)),
            "jittor_core*.so"]


def _halves(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return names[::2], names[1::2]


def _text(unit: Sequence[str], jittor: Path) -> str:
    """Includes each file of `unit`; static names that occur in several files get the file's number."""
    statics = [set() if name.startswith("gen/") else set(_STATIC.findall((jittor / name).read_text(encoding="utf-8")))
               for name in unit]
    uses = Counter(static for names in statics for static in names)
    lines = [f"// {_COLD if unit[0].startswith(_COLD_FILES) else _LEVEL}"]
    for number, (name, names) in enumerate(zip(unit, statics)):
        own = sorted(static for static in names if uses[static] > 1 or static in _DECLARED_ELSEWHERE)
        lines += [f"#define {static} {static}_{number}" for static in own]
        lines.append(f'#include <{re.sub("^(src|extern)/", "", name)}>')  # not the stand-in beside this one
        lines += [f"#undef {static}" for static in own]
    return "\n".join(lines) + "\n"
