"""AdamW and gradient clipping on a few named arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Collection, Mapping

import numpy as np

from jittor_lora import ops
from jittor_lora.errors import UserError
from jittor_lora.ops import frozen
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.training.trainable import Trainable


@dataclass
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), step for step like PyTorch's.

    Args:
        parameters: name → float32 array, updated in place.
        betas, epsilon, weight_decay: as in the paper; the decay is multiplied by the learning rate.
        rates: name → factor of the learning rate, 1 by default.
        undecayed: names of parameters without weight decay.
    """

    parameters: dict[str, jt.Var]
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    undecayed: Collection[str] = ()

    def __post_init__(self):
        self.steps = 0
        self.first = {name: frozen(np.zeros(p.shape)) for name, p in self.parameters.items()}
        self.second = {name: frozen(np.zeros(p.shape)) for name, p in self.parameters.items()}

    def step(self, gradients: dict[str, jt.Var], learning_rate: float, factor: float = 1.0) -> None:
        """One update of every parameter by its gradient, of the same shape, times `factor`."""
        self.steps += 1
        beta1, beta2 = self.betas
        unbiased = 1.0 - beta1**self.steps
        correction = (1.0 - beta2**self.steps) ** 0.5
        names = list(self.parameters)
        rates = [learning_rate * self.rates.get(name, 1.0) for name in names]
        decays = [1.0 - rate * (0.0 if name in self.undecayed else self.weight_decay)
                  for name, rate in zip(names, rates)]
        old = [[arrays[name] for name in names] for arrays in (self.parameters, gradients, self.first, self.second)]
        after = ops.adamw(*old, self.betas, decays, [rate / unbiased for rate in rates], correction, self.epsilon,
                          factor)
        for arrays, made in zip((old[0], *old[2:]), after):
            for array, value in zip(arrays, made):
                array.update(value)
        jt.sync_all()

    def moments(self) -> dict[str, jt.Var]:
        """"first.<name>" and "second.<name>" for every parameter."""
        return {f"{kind}.{name}": array
                for kind in ("first", "second") for name, array in getattr(self, kind).items()}

    def state(self) -> dict[str, np.ndarray]:
        """The moments, copied."""
        return {name: array.numpy() for name, array in self.moments().items()}

    def load_state(self, arrays: Mapping[str, np.ndarray], steps: int) -> None:
        """Restore what `state` returned after `steps` steps.

        Raises:
            UserError: a moment is missing or misshapen; all are listed.
        """
        moments = self.moments()
        expected = {name: tuple(array.shape) for name, array in moments.items()}
        found = {name: arrays[name].shape if name in arrays else "nothing" for name in expected}
        wrong = [f"{name}: expected shape {shape}, found {found[name]}"
                 for name, shape in expected.items() if found[name] != shape]
        if wrong:
            raise UserError("the optimiser's moments do not fit:\n  " + "\n  ".join(wrong))
        self.steps = steps
        for name, array in moments.items():
            array.update(jt.array(arrays[name]))


def optimizer_of(config: RunConfig, trainable: Trainable) -> AdamW:
    """AdamW over all trainable parameters, by LoRA+'s rule if its ratio is set."""
    parameters, rates, undecayed = trainable.parameters(), {}, set()
    if config.loraplus_lr_ratio is not None:
        rates, undecayed = loraplus_groups(parameters, config.loraplus_lr_ratio,
                                           config.loraplus_lr_embedding / config.learning_rate)
    return AdamW(parameters, (config.adam_beta1, config.adam_beta2), config.adam_epsilon, config.weight_decay, rates,
                 undecayed)


def loraplus_groups(parameters: Mapping[str, jt.Var], ratio: float,
                    embedding: float) -> tuple[dict[str, float], set[str]]:
    """LoRA+ (Hayou et al. 2024, section 4) by PEFT's rule: factors of the learning rate by parameter, and parameters
    without weight decay. The factor is `ratio` for B and every vector, `embedding` for updates of embeddings, 1 for the
    rest; biases and norms are not decayed.

    Args:
        parameters: by name, whose last part is the kind, see `Adapter.parameters`.
    """
    rates = {}
    for name, parameter in parameters.items():
        part = name.rsplit(".", 1)[-1]
        if part.startswith("lora_embedding_") or f"{name.rpartition('.')[0]}.lora_embedding_A" in parameters:
            rates[name] = embedding
        elif part == "lora_B" or len(parameter.shape) == 1:
            rates[name] = ratio
    vectors = {name for name, p in parameters.items()
               if len(p.shape) == 1 and name.endswith((".weight", ".bias", ".lora_B_bias"))}
    return rates, vectors


def gradient_norm(gradients: dict[str, jt.Var]) -> float:
    """The Euclidean norm of all gradients as one vector."""
    squares = ops.squared_norms(list(gradients.values())).numpy()
    return float(np.sqrt(squares.astype(np.float64).sum()))


def clip_scale(norm: float, limit: float) -> float:
    """The factor that brings a gradient of this norm to at most `limit` (Pascanu et al. 2013); 1 if `limit` is 0.

    The small constant is PyTorch's.
    """
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
