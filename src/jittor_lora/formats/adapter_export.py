"""The low-rank updates of a loaded adapter, for formats that hold nothing else."""

from __future__ import annotations

from typing import Iterator, Optional

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.formats.low_rank import LowRank
from jittor_lora.lora.adapted import TrainableCopy
from jittor_lora.lora.adapter import Adapter, Version
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.layer import Update


def updates_of(adapter: Adapter, base: Optional[str]) -> LowRank:
    """Its updates. One that PiSSA or OLoRA initialised becomes a plain one of twice the rank.

    Args:
        base: name of the base model.

    Raises:
        UserError: it has more than low-rank updates; all is listed.
    """
    wrong = [f"{name}: {problem}" for name, version in adapter.versions.items()
             for problem in more_than_low_rank(version)]
    if wrong:
        raise UserError("The format holds low-rank updates alone; the adapter has more:\n  "
                        + "\n  ".join(some_of_each(wrong)) + "\nMerge it into a model instead, with `jittor-lora "
                        "merge`.")
    factors = {name: factors_of(version) for name, version in adapter.updates.items()}
    magnitudes = {name: version.magnitude.numpy() for name, version in adapter.updates.items()
                  if version.magnitude is not None}
    config = adapter.config
    return LowRank(factors, config.r, config.alpha, magnitudes, config.dropout, base)


def more_than_low_rank(version: Version) -> Iterator[str]:
    """What it changes in its module beside a low-rank update, DoRA's magnitudes aside."""
    if isinstance(version, TrainableCopy):
        yield "trained whole, or in its bias or single rows"
    elif isinstance(version, Update) and version.bias is not None:
        yield "a trained bias"
    elif isinstance(version, Update) and version.b_bias is not None:
        yield "a bias on B"


def factors_of(version: Version) -> Factors:
    """A and B as a plain update."""
    if isinstance(version, Update) and version.initial is None:
        return Factors(version.lora_A.numpy(), version.effective_b(), version.scaling)
    if isinstance(version, Update):
        return Factors(*version.factors(), 1.0)
    return Factors(version.lora_A.numpy(), version.lora_B.numpy(), version.scaling)
