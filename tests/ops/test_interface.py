"""One header for the kernels, the operators that Jittor compiles and ctypes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess

import pytest

from jittor_lora.errors import UserError
from jittor_lora.ops.cpu import interface, library
from jittor_lora.system.runtime import kernel_tools
from needs import needs_kernels

pytestmark = needs_kernels


def compile_here(folder, *arguments: str) -> None:
    subprocess.run([kernel_tools().compiler, "-std=c++17", f"-I{folder}", *map(str, arguments)], check=True)


def test_structures_are_laid_out_as_compiled(tmp_path):
    places = [f"{name}, {field}" for name, structure in interface.STRUCTURES.items() for field, _ in structure._fields_]
    lines = "".join(f"printf(\"%zu \", offsetof(jl::decoding::{place.split(',')[0]},{place.split(',')[1]}));"
                    for place in places)
    (tmp_path / "a.cpp").write_text('#include <stdio.h>\n#include <stddef.h>\n#include "interface.h"\n'
                                    f"int main() {{ {lines} }}")
    compile_here(library.SOURCES, tmp_path / "a.cpp", "-o", tmp_path / "a")
    found = map(int, subprocess.run([str(tmp_path / "a")], stdout=subprocess.PIPE, check=True).stdout.split())
    expected = [getattr(structure, field).offset
                for structure in interface.STRUCTURES.values() for field, _ in structure._fields_]
    assert list(found) == expected and len(expected) > 40


def test_every_function_is_declared():
    defined = {name for path in library.SOURCES.glob("*.cpp")
               for name in re.findall(r"^JL_API .*?(jl_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert defined == set(interface.functions())


def test_a_library_with_other_structures_is_refused(tmp_path):
    for path in library.SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    header = tmp_path / "interface.h"
    text = header.read_text(encoding="utf-8")
    header.write_text(text.replace("int32_t first, count;", "int32_t first, count, more[2];"))
    compile_here(tmp_path, "-shared", "-fPIC", tmp_path / "interface.cpp", "-o", tmp_path / "other.so")
    with pytest.raises(UserError, match="Reading: 56 bytes in Python, 64 compiled"):
        interface.compare_sizes(ctypes.CDLL(str(tmp_path / "other.so")))


def test_types_of_the_library():
    kernels = library.library()
    assert kernels.jl_packed_head_size.restype is ctypes.c_int64
    assert kernels.jl_decode_free.argtypes == [ctypes.c_void_p] and kernels.jl_decode_free.restype is None
    with pytest.raises(ctypes.ArgumentError):
        kernels.jl_packed_size(1.5, 1)


def test_the_constants():
    assert interface.CONSTANTS["RANKS_AT_A_TIME"] == 8
    assert interface.ENUMERATIONS["Activation"] == ("GELU_TANH", "GELU_ERF", "SILU", "RELU", "QUICK_GELU", "TANH")
