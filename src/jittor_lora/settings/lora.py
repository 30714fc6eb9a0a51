"""The settings of a LoRA adapter, each defined once: as a field of `LoraConfig`.

A field carries what its other forms need: the values it accepts, PEFT's name for it, and the help of its flag. The LoRA
settings of a run (`settings.run`) and PEFT's adapter_config.json (`formats.peft_config`) are derived from the fields.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple, Optional, Union

from jittor_lora.errors import UserError
from jittor_lora.files.patterns import wrong_pattern
from jittor_lora.settings.problems import Problem

ALL_LINEAR = "all-linear"
MAX_RANK = 4096
BIASES = ("none", "all", "lora_only")
PLAIN_INITS = ("gaussian", "kaiming")  # that leave W as it is
INITS = (*PLAIN_INITS, "pissa", "olora")
FAST_PISSA = re.compile(r"pissa_niter_([1-9]\d?)")


# --- values ----------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """The values that a setting accepts.

    Attributes:
        expected: they in words.
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


def _names_or_expression(text: str) -> list[str] | str:
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
            problem = wrong_pattern(name) or _uncompilable(_at_end_of_name(name))
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


# --- definitions -----------------------------------------------------------------------------------------------------


def _setting(default: Any, peft: str | None, kind: Kind, description: str) -> Any:
    how = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(**how, metadata={"peft": peft, "kind": kind, "description": description})


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation: W x + scaling · B A x, with W frozen (Hu et al. 2021, section 4.1).

    The names are those of PEFT's LoraConfig but for `alpha`, `dropout` and `init`.

    Args:
        r: the rank, rows of A.
        alpha: the numerator of the scaling, which is alpha / r.
        dropout: dropout on the input of A in training.
        target_modules: last parts of module names ("c_attn", "mlp.c_proj"), or one regular expression that matches
            whole names, or "all-linear" for every linear layer but the output head. Embeddings and the head
            (`lm_head`) may be named.
        init: the initialisation of A and B. "gaussian": A normal with standard deviation 1/r, B zero; "kaiming": A
            uniform in ±1/√in, B zero; "pissa": from the largest singular values of W (Meng et al. 2024, eq. 2 and 3),
            with "pissa_niter_N" computed by N power iterations from a random start (Halko et al. 2011, algorithm 4.4);
            "olora": from the QR decomposition of W (Büyükakyüz 2024). See `lora.init`.
        qv_only: in GPT-2's fused `c_attn`, update queries and values but not keys.
        use_rslora: the scaling is alpha / √r (Kalajdzievski 2023, theorem 3.2).
        use_dora: the norms of the updated weight's rows are trained (Liu et al. 2024, eq. 5), see `lora.layer`.
        rank_pattern, alpha_pattern: a different r or alpha for some modules. A key is a regular expression that matches
            a whole name or its last parts; the first match counts.
        layers_to_transform: update only these blocks; not with a regular expression or "all-linear".
        layers_pattern: the name of the list of blocks ("h", "layers"); by default whatever precedes a number.
        exclude_modules: modules to leave out, given as in `target_modules`.
        modules_to_save: ends of module names ("ln_f", "wte", "lm_head"), all of whose parameters are trained and saved.
        bias: the biases that are trained: "none", "all" of the model, or "lora_only", those of adapted layers.

    Raises:
        UserError: values are out of range or conflict; all are listed.
    """

    r: int = _setting(8, "r", RANK, "rank of the update")
    alpha: float = _setting(16.0, "lora_alpha", POSITIVE, "the update is scaled by alpha / r")
    dropout: float = _setting(0.0, "lora_dropout", SHARE, "dropout on the input of the update")
    target_modules: Union[tuple[str, ...], str] = _setting(
        ALL_LINEAR, "target_modules", TARGETS, "modules to update: names or their last parts, a regular expression on "
        "whole names, or all-linear; by default c_attn,c_proj,c_fc (GPT-2) or all seven projections (Llama)")
    init: str = _setting(
        "gaussian", "init_lora_weights", INIT, "initialisation of A and B: gaussian (A with standard deviation 1/r, B "
        "zero), kaiming (A uniform, B zero, as in PEFT), pissa or pissa_niter_N (the weight's largest singular values, "
        "exactly or by N iterations), olora (its QR decomposition)")
    qv_only: bool = _setting(
        False, None, SWITCH, "in GPT-2's fused c_attn update queries and values, but not keys")
    use_rslora: bool = _setting(False, "use_rslora", SWITCH, "scale the update by alpha / sqrt(r) (rsLoRA)")
    use_dora: bool = _setting(
        False, "use_dora", SWITCH, "train the norms of the weights' rows separately from their directions (DoRA)")
    rank_pattern: Mapping[str, int] = _setting(
        {}, "rank_pattern", RANKS, "other ranks by module: NAME=N,…, where NAME is a regular expression for the end of "
        "module names")
    alpha_pattern: Mapping[str, float] = _setting(
        {}, "alpha_pattern", ALPHAS, "other alphas by module: NAME=X,…, as in lora_rank_pattern")
    layers_to_transform: Optional[tuple[int, ...]] = _setting(
        None, "layers_to_transform", BLOCKS, "update only these blocks, counted from 0")
    layers_pattern: Optional[tuple[str, ...]] = _setting(
        None, "layers_pattern", LISTS, "name of the list of blocks that lora_layers_to_transform counts; by default "
        "any list")
    exclude_modules: Union[tuple[str, ...], str] = _setting(
        (), "exclude_modules", EXCLUDED, "modules to leave out of target_modules: names or their last parts, or a "
        "regular expression")
    modules_to_save: tuple[str, ...] = _setting(
        (), "modules_to_save", NAME_ENDS, "modules to train and save whole, by the end of their names, such as "
        "ln_f,wte or lm_head")
    bias: str = _setting(
        "none", "bias", BIAS, "biases to train too: none, all of the model, or lora_only, those of updated modules")

    def __post_init__(self):
        values = {name: getattr(self, name) for name in DEFINITIONS}
        wrong = [f"{problem.fields[0]}: {problem.text}" for problem in problems(values)]
        if wrong:
            raise UserError("LoRA settings:\n  " + "\n  ".join(wrong))

    @property
    def scaling(self) -> float:
        """Of modules that no pattern matches."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def changes_base(self) -> bool:
        """Does the initialisation take a part out of W, which the update then adds back?"""
        return self.init not in PLAIN_INITS

    def rank_of(self, module: str) -> int:
        return _of_pattern(self.rank_pattern, module, self.r)

    def scaling_of(self, module: str) -> float:
        alpha, rank = _of_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


DEFINITIONS = {field.name: field for field in dataclasses.fields(LoraConfig)}


def _of_pattern(pattern: Mapping, module: str, default):
    """The value of the first key that matches the module's name or its last parts, by PEFT's rule."""
    return next((value for key, value in pattern.items() if _matcher(key).match(module)), default)


@lru_cache(maxsize=1 << 14)  # there may be one per module, more than `re` keeps compiled
def _matcher(key: str) -> re.Pattern:
    return re.compile(_at_end_of_name(key))


def _at_end_of_name(key: str) -> str:
    return rf"(.*\.)?({key})$"


# --- rules -----------------------------------------------------------------------------------------------------------


def problems(values: Mapping[str, Any], called: Callable[[str], str] = str) -> Iterator[Problem]:
    """Everything wrong with `values`, by the names of `LoraConfig`.

    Args:
        called: the caller's name for a field, for texts that mention another one.
    """
    wrong = set()
    for name, field in DEFINITIONS.items():
        value = values[name]
        problem = None if value is None and field.default is None else field.metadata["kind"].wrong(value)
        if name == "target_modules" and not problem and not value:
            problem = "expected at least one name, found none"
        if problem:
            wrong.add(name)
            yield Problem((name,), problem)
    yield from (problem for problem in conflicts(values, called) if wrong.isdisjoint(problem.fields))


def conflicts(values: Mapping[str, Any], called: Callable[[str], str] = str) -> Iterator[Problem]:
    """Values that conflict, each valid alone; see `problems`."""
    targets, layers = values["target_modules"], values["layers_to_transform"]
    if layers is not None and isinstance(targets, str):
        yield Problem(("layers_to_transform", "target_modules"),
                      f"needs names as {called('target_modules')}, found {targets!r}, which applies to whole names; "
                      "name the modules, or write the layers into the expression")
    if values["layers_pattern"] and layers is None:
        yield Problem(("layers_pattern", "layers_to_transform"),
                      f"has no effect without {called('layers_to_transform')}")
    if values["qv_only"] and targets and not isinstance(targets, str) and not any(
            name.split(".")[-1] == "c_attn" for name in targets):
        yield Problem(("qv_only", "target_modules"),
                      f"expected the fused projection c_attn (GPT-2) among {called('target_modules')}, found "
                      f"{', '.join(targets)}; for Llama, name q_proj and v_proj instead")
