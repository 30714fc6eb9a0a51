"""Settings of a LoRA adapter."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Iterator, Mapping, Optional, Union

from jittor_lora.errors import UserError

# What is adapted when nothing is said: every projection of attention and feed-forward.
DEFAULT_TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
ALL_LINEAR = "all-linear"
MAX_RANK = 4096
BIASES = ("none", "all", "lora_only")
INITS = ("gaussian", "kaiming", "pissa", "olora")
FAST_PISSA = re.compile(r"pissa_niter_([1-9]\d?)")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation: W x + scaling · B A x, with W frozen (Hu et al. 2021, section 4.1).

    The names are those of PEFT's LoraConfig but for `alpha`, `dropout` and `init`.

    Args:
        r: the rank, rows of A.
        alpha: the numerator of the scaling, which is alpha / r.
        dropout: the share of the input's elements that A does not see in training.
        target_modules: last parts of module names ("c_attn", "mlp.c_proj"), or one regular expression that matches
            whole names, or "all-linear" for every linear layer but the output head. Embeddings and the head
            (`lm_head`) may be named.
        init: how A and B begin. "gaussian": A normal with standard deviation 1/r, B zero; "kaiming": A uniform in
            ±1/√in, B zero; "pissa": from the largest singular values of W (Meng et al. 2024, eq. 2 and 3), with
            "pissa_niter_N" computed by N power iterations from a random start (Halko et al. 2011, algorithm 4.4);
            "olora": from the QR decomposition of W (Büyükakyüz 2024). See `lora.init`.
        qv_only: on GPT-2's fused `c_attn`, the rows of the keys get no update.
        use_rslora: the scaling is alpha / √r (Kalajdzievski 2023, theorem 3.2).
        use_dora: the rows of the updated weight have trained lengths (Liu et al. 2024, eq. 5), see `lora.layer`.
        rank_pattern, alpha_pattern: another r or alpha for modules by name; a key is a regular expression that matches
            a whole name or its last parts, the first that does counts.
        layers_to_transform: only blocks of these numbers; not with a regular expression or "all-linear".
        layers_pattern: what the list of blocks is called ("h", "layers"); by default whatever comes before a number.
        exclude_modules: as `target_modules`, modules that are left out.
        modules_to_save: ends of module names ("ln_f", "wte", "lm_head"); of those all parameters are trained and saved
            whole.
        bias: the biases that are trained: "none", "all" of the model, or "lora_only", those of adapted layers.

    Raises:
        UserError: a value out of range, or values that do not go together; all of them are listed.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: Union[tuple[str, ...], str] = ALL_LINEAR
    init: str = "gaussian"
    qv_only: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: Optional[tuple[int, ...]] = None
    layers_pattern: Optional[tuple[str, ...]] = None
    exclude_modules: Union[tuple[str, ...], str] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    def __post_init__(self):
        wrong = list(self._problems())
        if wrong:
            raise UserError("LoRA settings:\n  " + "\n  ".join(wrong))

    def _problems(self) -> Iterator[str]:
        if not _is_rank(self.r):
            yield f"r: expected a whole number from 1 to {MAX_RANK}, found {self.r}"
        if not 0 < self.alpha < float("inf"):
            yield f"alpha: expected a number above 0, found {self.alpha}"
        if not 0 <= self.dropout < 1:
            yield f"dropout: expected a number from 0 to below 1, found {self.dropout}"
        if self.init not in INITS and not FAST_PISSA.fullmatch(self.init):
            yield f"init: expected {', '.join(INITS)} or pissa_niter_N with N from 1 to 99, found {self.init}"
        if not self.target_modules:
            yield "target_modules: expected at least one name, found none"
        if self.bias not in BIASES:
            yield f"bias: expected one of {', '.join(BIASES)}, found {self.bias}"
        for key, rank in self.rank_pattern.items():
            if not _is_rank(rank):
                yield f"rank_pattern: {key}: expected a whole number from 1 to {MAX_RANK}, found {rank}"
        for key, alpha in self.alpha_pattern.items():
            if not 0 < alpha < float("inf"):
                yield f"alpha_pattern: {key}: expected a number above 0, found {alpha}"
        for name in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, name):
                problem = expression_problem(f"(.*\\.)?({key})$")
                if problem:
                    yield f"{name}: {key!r} is not a regular expression ({problem})"
        for key in self.layers_pattern or ():
            problem = expression_problem(key)
            if problem:
                yield f"layers_pattern: {key!r} is not a regular expression ({problem})"
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            yield (f"layers_to_transform: goes with names as target_modules, found {self.target_modules!r}, which is "
                   "about whole names; name the modules, or write the layers into the expression")
        if self.layers_pattern and self.layers_to_transform is None:
            yield "layers_pattern: has no effect without layers_to_transform"
        if self.layers_to_transform is not None and (
                not self.layers_to_transform or any(layer < 0 for layer in self.layers_to_transform)):
            yield f"layers_to_transform: expected numbers of blocks from 0 on, found {list(self.layers_to_transform)}"

    @property
    def scaling(self) -> float:
        """Of modules that no pattern is about."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def changes_base(self) -> bool:
        """Does the start take a part out of W, which the update then puts back?"""
        return self.init not in ("gaussian", "kaiming")

    def rank_of(self, module: str) -> int:
        return _of_pattern(self.rank_pattern, module, self.r)

    def scaling_of(self, module: str) -> float:
        alpha, rank = _of_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def expression_problem(text: str) -> str | None:
    """Why the text is no regular expression, or None."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return None


def _is_rank(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _of_pattern(pattern: Mapping, module: str, default):
    """The value of the first key that matches the module's name or its last parts, by PEFT's rule."""
    return next((value for key, value in pattern.items() if _at_end(key).match(module)), default)


@lru_cache(maxsize=1 << 14)  # there may be one for each module, more than `re` keeps compiled
def _at_end(key: str) -> re.Pattern:
    return re.compile(rf"(.*\.)?({key})$")
