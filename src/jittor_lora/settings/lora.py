"""The settings of a LoRA adapter, each defined once: as a field of `LoraConfig`.

A field carries what its other forms need: the values it accepts, PEFT's name for it, and the help of its flag. The LoRA
settings of a run (`settings.run`) and PEFT's adapter_config.json (`formats.peft_config`) are derived from the fields.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Optional, Union

from jittor_lora.errors import UserError
from jittor_lora.settings import kinds
from jittor_lora.settings.problems import Problem


def _setting(default: Any, peft: str | None, kind: kinds.Kind, description: str) -> Any:
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
        lora_bias: B has a trained bias b, so that the update is scaling · (B A x + b); not with DoRA, embeddings or the
            output head.

    Raises:
        UserError: values are out of range or conflict; all are listed.
    """

    r: int = _setting(8, "r", kinds.RANK, "rank of the update")
    alpha: float = _setting(16.0, "lora_alpha", kinds.POSITIVE, "the update is scaled by alpha / r")
    dropout: float = _setting(0.0, "lora_dropout", kinds.SHARE, "dropout on the input of the update")
    target_modules: Union[tuple[str, ...], str] = _setting(
        kinds.ALL_LINEAR, "target_modules", kinds.TARGETS, "modules to update: names or their last parts, a regular "
        "expression on whole names, or all-linear; by default c_attn,c_proj,c_fc (GPT-2) or all seven projections "
        "(Llama)")
    init: str = _setting(
        "gaussian", "init_lora_weights", kinds.INIT, "initialisation of A and B: gaussian (A with standard deviation "
        "1/r, B zero), kaiming (A uniform, B zero, as in PEFT), pissa or pissa_niter_N (the weight's largest singular "
        "values, exactly or by N iterations), olora (its QR decomposition)")
    qv_only: bool = _setting(
        False, None, kinds.SWITCH, "in GPT-2's fused c_attn update queries and values, but not keys")
    use_rslora: bool = _setting(False, "use_rslora", kinds.SWITCH, "scale the update by alpha / sqrt(r) (rsLoRA)")
    use_dora: bool = _setting(
        False, "use_dora", kinds.SWITCH, "train the norms of the weights' rows separately from their directions (DoRA)")
    rank_pattern: Mapping[str, int] = _setting(
        {}, "rank_pattern", kinds.RANKS, "other ranks by module: NAME=N,…, where NAME is a regular expression for the "
        "end of module names")
    alpha_pattern: Mapping[str, float] = _setting(
        {}, "alpha_pattern", kinds.ALPHAS, "other alphas by module: NAME=X,…, as in lora_rank_pattern")
    layers_to_transform: Optional[tuple[int, ...]] = _setting(
        None, "layers_to_transform", kinds.BLOCKS, "update only these blocks, counted from 0")
    layers_pattern: Optional[tuple[str, ...]] = _setting(
        None, "layers_pattern", kinds.LISTS, "name of the list of blocks that lora_layers_to_transform counts; by "
        "default any list")
    exclude_modules: Union[tuple[str, ...], str] = _setting(
        (), "exclude_modules", kinds.EXCLUDED, "modules to leave out of target_modules: names or their last parts, or "
        "a regular expression")
    modules_to_save: tuple[str, ...] = _setting(
        (), "modules_to_save", kinds.NAME_ENDS, "modules to train and save whole, by the end of their names, such as "
        "ln_f,wte or lm_head")
    bias: str = _setting(
        "none", "bias", kinds.BIAS, "biases to train too: none, all of the model, or lora_only, those of updated "
        "modules")
    lora_bias: bool = _setting(
        False, "lora_bias", kinds.SWITCH, "train a bias on B too, scaled as the update is; not with DoRA")

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
        return self.init not in kinds.PLAIN_INITS

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
    return re.compile(kinds.at_end_of_name(key))


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
    if values["lora_bias"] and values["use_dora"]:
        yield Problem(("lora_bias", "use_dora"), f"does not go with {called('use_dora')}")
    if values["lora_bias"] and values["init"] not in kinds.PLAIN_INITS:
        yield Problem(("lora_bias", "init"),
                      f"needs {' or '.join(kinds.PLAIN_INITS)} as {called('init')}, found {values['init']}")
    if values["qv_only"] and targets and not isinstance(targets, str) and not any(
            name.split(".")[-1] == "c_attn" for name in targets):
        yield Problem(("qv_only", "target_modules"),
                      f"expected the fused projection c_attn (GPT-2) among {called('target_modules')}, found "
                      f"{', '.join(targets)}; for Llama, name q_proj and v_proj instead")
