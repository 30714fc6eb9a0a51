"""LoRA for any Jittor module."""

from __future__ import annotations

from typing import Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import DEFAULT, Adapters, adapters_of
from jittor_lora.lora.kinds import SUPPORTED
from jittor_lora.lora.places import places
from jittor_lora.system.runtime import jt


def adapt(module: jt.Module, config: LoraConfig, name: str = DEFAULT, seed: int = 0,
          arrays: Mapping[str, np.ndarray] | None = None) -> Adapters:
    """Put an adapter into a module, in place, and freeze all else. Called again, it adds another adapter.

    Layers are replaced by adapted ones that are called like them; the arrays of the base are never changed. The first
    adapter is active at once.

    Args:
        module: any Jittor module with layers below it.
        config: which layers are adapted, and how, by PEFT's rules.
        name: of the adapter, without dots.
        seed: of the random initialisation and of dropout.
        arrays: the trained arrays, see `Adapter.parameters`; by default they are initialised.

    Returns: the module's adapters.

    Raises:
        UserError: the name is taken, or the settings do not fit the module; all offenders are listed, and the module
            is unchanged.
        TypeError: not a Jittor module.
    """
    if not isinstance(module, jt.Module):
        raise TypeError(f"adapt: expected a jittor.Module, found {type(module).__name__}")
    if not places(module):
        raise UserError(f"adapt: this {type(module).__name__} has no layers below it that could be replaced. Adapt the "
                        f"module that holds it, or put it into a jittor.nn.Sequential; {SUPPORTED} can be adapted.")
    adapters = adapters_of(module)
    adapters.add(config, name, seed, arrays)
    return adapters


def trainable(module: jt.Module) -> list[jt.Var]:
    """The arrays that the active adapters train, for an optimiser of Jittor's."""
    adapters = adapters_of(module)
    return [array for name in adapters.active for array in adapters[name].parameters().values()]
