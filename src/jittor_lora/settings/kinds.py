"""The values that settings of an adapter accept: in words, as a check, and as text on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, Optional

from jittor_lora.files.patterns import wrong_pattern

ALL_LINEAR = "all-linear"
MAX_RANK = 4096
BIASES = ("none", "all", "lora_only")
PLAIN_INITS = ("gaussian", "kaiming")  # that leave W as it is
INITS = (*PLAIN_INITS, "pissa", "olora")
FAST_PISSA = re.compile(r"pissa_niter_([1-9]\d?)")


class Kind(NamedTuple):
    """The values that a setting accepts.

    Attributes:
        expected: the values in words.
        wrong: says what is wrong with a value; None if nothing is.
        read: the value that a text on the command line stands for; numbers in it stay text.
    """

    expected: str
    wrong: Callable[[Any], Optional[str]]
    read: Callable[[str], Any] = str


def _kind(expected: str, accepts: Callable[[Any], bool], read: Callable[[str], Any] = str) -> Kind:
    return Kind(expected, lambda value: None if accepts(value) else f"expected {expected}, found {_shown(value)}", read)


def _shown(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:79] + "…"


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_positive(value: Any) -> bool:
    return isinstance(value, Real) and 0 < value < math.inf


def _are_names(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(
        isinstance(name, str) and name.strip() for name in value)


def _separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.rpartition("=") for part in text.split(",")]
    return {name.strip(): number.strip() for name, _, number in pairs}


def _names_or_expression(text: str) -> list[str] | str | None:
    if not text:
        return None
    names = _separated(text)
    return names if text != ALL_LINEAR and all(re.fullmatch(r"[\w.]+", name) for name in names) else text


def _modules(expected: str) -> Kind:
    def wrong(value: Any) -> str | None:
        if isinstance(value, str):
            return wrong_pattern(value) if value else f"expected {expected}, found nothing"
        return None if _are_names(value) else f"expected {expected}, found {_shown(value)}"

    return Kind(expected, wrong, _names_or_expression)


def _by_module(expected: str, accepts: Callable[[Any], bool]) -> Kind:
    def wrong(value: Any) -> str | None:
        if not isinstance(value, Mapping) or not all(value):
            return f"expected {expected}, found {_shown(value)}"
        for name, number in value.items():
            problem = wrong_pattern(name) or _uncompilable(at_end_of_name(name))
            if problem:
                return f"{name!r}: {problem}"
            if not accepts(number):
                return f"{name}: expected {expected}, found {_shown(number)}"
        return None

    return Kind(expected, wrong, _pairs)


def _wrong_expressions(value: Any) -> str | None:
    if not _are_names(value):
        return f"expected names (h,layers), found {_shown(value)}"
    problems = ((name, wrong_pattern(name)) for name in value)
    return next((f"{name!r}: {problem}" for name, problem in problems if problem), None)


def _uncompilable(expression: str) -> str | None:
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression ({error})"
    return None


def at_end_of_name(key: str) -> str:
    """A regular expression for names that `key`, one itself, matches as a whole or in their last parts."""
    return rf"(.*\.)?({key})$"


RANK = _kind(f"a whole number from 1 to {MAX_RANK}", _is_rank)
POSITIVE = _kind("a number above 0", _is_positive)
SHARE = _kind("a number from 0 to below 1", lambda value: isinstance(value, Real) and 0 <= value < 1)
SWITCH = _kind("true or false", lambda value: value in (True, False))
INIT = _kind("gaussian, kaiming, pissa, pissa_niter_N (N from 1 to 99) or olora",
             lambda value: isinstance(value, str) and bool(value in INITS or FAST_PISSA.fullmatch(value)))
BIAS = _kind(f"one of {', '.join(BIASES)}", lambda value: value in BIASES)
TARGETS = _modules(f"module names (c_attn,c_proj), a regular expression, or {ALL_LINEAR}")
EXCLUDED = _modules("module names (c_attn,c_proj) or a regular expression")
NAME_ENDS = _kind("ends of module names (ln_f,wte)", _are_names, _separated)
RANKS = _by_module(f"modules with ranks from 1 to {MAX_RANK} (c_attn=16,mlp.c_proj=4)", _is_rank)
ALPHAS = _by_module("modules with alphas above 0 (c_attn=32,mlp.c_proj=8)", _is_positive)
BLOCKS = _kind("numbers of blocks from 0 on (0,1,5)", lambda value: isinstance(value, Sequence) and len(value) > 0 and
               all(type(number) is int and number >= 0 for number in value), _separated)
LISTS = Kind("names (h,layers)", _wrong_expressions, _separated)
