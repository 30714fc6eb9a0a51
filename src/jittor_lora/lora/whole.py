"""Full fine-tuning: all weights of a network are trained, in place of an adapter."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Iterator, Mapping

import numpy as np

from jittor_lora.lora.adapted import TrainableCopy
from jittor_lora.lora.inject import set_arrays
from jittor_lora.lora.merge import TABLES
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import leaves
from jittor_lora.system.runtime import jt


class WholeModel:
    """What the training loop needs of an adapter, of a network whose own weights are trained.

    Every frozen weight is replaced by a float32 copy that takes a gradient, one after the other, so that the base's are
    given back. A head that is tied to the embedding stays so: they are one array, and get one gradient. Products and
    attention are in float32.

    Args:
        model: is changed; it is not the base any more.
    """

    def __init__(self, model: CausalLM):
        self._parameters: dict[str, jt.Var] = {}
        self.modules, table = 0, None
        for leaf in list(leaves(model)):
            if leaf.name == OUTPUT_HEAD and model.config.tied_head:
                module = copy.copy(leaf.module)
                module.weight = table
            else:
                made = TrainableCopy(leaf.module, whole=True)
                module = made.module
                self._parameters.update((f"{leaf.name}.{part}", array) for part, array in made.trained.items())
            if leaf.name in TABLES:
                table = module.weight
            setattr(leaf.holder, leaf.attribute, module)
            self.modules += 1
        model.precision = "fp32"

    def parameters(self) -> dict[str, jt.Var]:
        """Name of a tensor → array, matrices as (out, in), in the network's order; a tied head is not there."""
        return dict(self._parameters)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set all trained arrays.

        Raises:
            UserError: a missing, unexpected or misshapen array; all are listed.
        """
        set_arrays(self._parameters, arrays)

    def initial(self) -> dict[str, np.ndarray]:
        """What the start took out of the base's weights: nothing."""
        return {}

    def load_initial(self, arrays: Mapping[str, np.ndarray]) -> None:
        """
        Raises:
            UserError: there is anything.
        """
        set_arrays({}, arrays)

    def count(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(p.shape)) for p in self._parameters.values())

    def set_dropout(self, *key: int, rows: Mapping[int, int] = MappingProxyType({})) -> None:
        """There is no dropout."""


class TrainedTensors(Mapping[str, np.ndarray]):
    """A checkpoint's tensors as a network has them now, in the checkpoint's orientation.

    Args:
        names: of the checkpoint's tensors.
    """

    def __init__(self, names: Mapping[str, np.ndarray], model: CausalLM):
        self._names = dict.fromkeys(names)
        self._modules = {leaf.name: leaf.module for leaf in leaves(model)}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        module, _, part = name.rpartition(".")
        array = getattr(self._modules[module], part).numpy()
        turned = part == "weight" and getattr(self._modules[module], "stored_transposed", False)
        return np.ascontiguousarray(array.T) if turned else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
