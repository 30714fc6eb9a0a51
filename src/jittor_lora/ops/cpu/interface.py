"""The kernels' C interface for Python, parsed from kernels/interface.h, so that it is stated only once."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from jittor_lora.errors import UserError

_TEXT = (Path(__file__).parent / "kernels" / "interface.h").read_text(encoding="utf-8")
HEADER = re.sub(r" *//.*", "", _TEXT)

_NUMBERS = {"int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float,
            "double": ctypes.c_double}

CONSTANTS = {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (-?\d+);", HEADER)}
ENUMERATIONS = {name: tuple(re.findall(r"\w+", body)) for name, body in re.findall(r"enum (\w+) {(.*?)}", HEADER)}


def _structures() -> dict[str, type[ctypes.Structure]]:
    made: dict[str, type[ctypes.Structure]] = {}
    for name, body in re.findall(r"struct (\w+) {(.*?)};", HEADER, re.DOTALL):
        fields = []
        for statement in filter(None, map(str.strip, body.split(";"))):
            kind, names = re.fullmatch(r"(?:const )?(\w+)\b(.*)", statement, re.DOTALL).groups()
            for star, field, count in re.findall(r"(\*?) ?(\w+)(?:\[(\d+)\])?", names):
                one = ctypes.c_void_p if star else (_NUMBERS.get(kind) or made[kind])
                fields.append((field, one * int(count) if count else one))
        made[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return made


STRUCTURES = _structures()


def _type(declaration: str):
    """The type of a parameter or result; pointers are addresses."""
    if "*" in declaration:
        return ctypes.c_void_p
    return _NUMBERS[declaration.split()[0]]


def functions() -> dict[str, tuple[object, list]]:
    """Function → the type of its result and the types of its parameters."""
    found = {}
    for result, name, parameters in re.findall(r"^([\w:]+\*?) (jl_\w+)\((.*?)\);", HEADER, re.DOTALL | re.MULTILINE):
        types = [_type(parameter) for parameter in parameters.split(",") if parameter.strip()]
        found[name] = None if result == "void" else _type(result), types
    return found


def declare(kernels: ctypes.CDLL) -> None:
    """Give the library's functions their types. A function that returns an error code or a null pointer raises
    MemoryError or RuntimeError.

    Raises:
        UserError: a structure has a different size in the library.
    """
    for name, (result, parameters) in functions().items():
        function = getattr(kernels, name)
        function.restype, function.argtypes = result, parameters
        if result is not None:
            function.errcheck = _checked
    compare_sizes(kernels)


def compare_sizes(kernels: ctypes.CDLL) -> None:
    """
    Raises:
        UserError: a structure has a different size in the library.
    """
    compiled = (ctypes.c_int64 * len(STRUCTURES))()
    kernels.jl_interface_sizes(compiled, len(compiled))
    wrong = [f"{name}: {ctypes.sizeof(structure)} bytes in Python, {size} compiled"
             for (name, structure), size in zip(STRUCTURES.items(), compiled) if ctypes.sizeof(structure) != size]
    if wrong:
        raise UserError("The CPU kernels' structures differ from interface.h: " + "; ".join(wrong))


def _checked(result, function, arguments):
    if result is None or result == CONSTANTS["NO_MEMORY"]:
        raise MemoryError(f"out of memory in {function.__name__}")
    if result == CONSTANTS["FAILED"]:
        raise RuntimeError(f"oneDNN failed in {function.__name__}")
    return result
