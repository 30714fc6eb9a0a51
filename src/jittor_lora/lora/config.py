"""Settings of a LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from jittor_lora.errors import UserError

# What is adapted when nothing is said: every projection of attention and feed-forward.
DEFAULT_TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
ALL_LINEAR = "all-linear"
MAX_RANK = 4096


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation: W x + (alpha / r) B A x, with W frozen (Hu et al. 2021, section 4.1).

    Args:
        r: the rank, rows of A.
        alpha: the numerator of the scaling.
        dropout: the share of the input's elements that A does not see in training.
        target_modules: last parts of module names ("c_attn", "mlp.c_proj"), or one regular expression that matches
            whole names, or "all-linear" for every linear layer but the output head.
        init: A's start, "gaussian" with standard deviation 1/r, or "kaiming", uniform in ±1/√in; B starts at zero.
        qv_only: on GPT-2's fused `c_attn`, the rows of the keys get no update.

    Raises:
        UserError: a value out of range; all of them are listed.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: Union[tuple[str, ...], str] = ALL_LINEAR
    init: str = "gaussian"
    qv_only: bool = False

    def __post_init__(self):
        wrong = []
        if not 1 <= self.r <= MAX_RANK:
            wrong.append(f"r: expected a whole number from 1 to {MAX_RANK}, found {self.r}")
        if not 0 < self.alpha < float("inf"):
            wrong.append(f"alpha: expected a number above 0, found {self.alpha}")
        if not 0 <= self.dropout < 1:
            wrong.append(f"dropout: expected a number from 0 to below 1, found {self.dropout}")
        if self.init not in ("gaussian", "kaiming"):
            wrong.append(f"init: expected gaussian or kaiming, found {self.init}")
        if not self.target_modules:
            wrong.append("target_modules: expected at least one name, found none")
        if wrong:
            raise UserError("LoRA settings:\n  " + "\n  ".join(wrong))

    @property
    def scaling(self) -> float:
        return self.alpha / self.r
