"""Full fine-tuning: all weights of a network are trained, instead of an adapter."""

from __future__ import annotations

import copy
from typing import Iterator, Mapping

import numpy as np

from jittor_lora import ops
from jittor_lora.lora.adapted import TrainableCopy
from jittor_lora.lora.adapter import set_arrays
from jittor_lora.lora.merge import TOKEN_EMBEDDINGS
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import leaf_modules
from jittor_lora.system.runtime import jt


class WholeModel:
    """A network whose own weights are trained; offers the training loop what an `Adapter` does.

    Every frozen weight is replaced by a float32 copy that takes a gradient, one at a time, so that the memory of the
    base's is released along the way. A head tied to the embedding stays tied: the two are one array with one gradient.
    Matrix products and attention are in the network's precision where its device has kernels for that, see
    `ops.training_precision`; weights and gradients are float32.

    Args:
        model: is changed in place; afterwards it is no longer the base.
    """

    def __init__(self, model: CausalLM):
        self._parameters: dict[str, jt.Var] = {}
        embedding = None
        for leaf in list(leaf_modules(model)):
            if leaf.name == OUTPUT_HEAD and model.config.tied_head:
                module = copy.copy(leaf.module)
                module.weight = embedding
            else:
                trainable = TrainableCopy(leaf.module, whole=True)
                module = trainable.module
                self._parameters.update((f"{leaf.name}.{part}", array) for part, array in trainable.trained.items())
            if leaf.name in TOKEN_EMBEDDINGS:
                embedding = module.weight
            setattr(leaf.parent, leaf.attribute, module)
        model.precision = ops.training_precision(model.precision)

    def parameters(self) -> dict[str, jt.Var]:
        """Tensor name → array, matrices as (out, in), in the network's order; without a tied head."""
        return dict(self._parameters)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set all trained arrays; names and shapes as in `parameters`.

        Raises:
            UserError: an array is missing, unexpected or misshapen; all are listed.
        """
        set_arrays(self._parameters, arrays)

    def initial(self) -> dict[str, np.ndarray]:
        """What was subtracted from the base's weights: nothing."""
        return {}

    def load_initial(self, arrays: Mapping[str, np.ndarray]) -> None:
        """
        Raises:
            UserError: there are arrays.
        """
        set_arrays({}, arrays)

    def count(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(p.shape)) for p in self._parameters.values())

    def set_dropout(self, *key: int) -> None:
        """Does nothing: there is no dropout."""


class TrainedTensors(Mapping[str, np.ndarray]):
    """A network's current weights under the names and in the orientation of its checkpoint.

    Args:
        names: of the checkpoint's tensors.
    """

    def __init__(self, names: Mapping[str, np.ndarray], model: CausalLM):
        self._names = dict.fromkeys(names)
        self._modules = {leaf.name: leaf.module for leaf in leaf_modules(model)}

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
