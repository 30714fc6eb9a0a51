"""AdamW and gradient clipping on a few named arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jittor_lora.runtime import jt


@dataclass
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), step for step like PyTorch's.

    Args:
        parameters: name → float32 array, updated in place.
        betas, epsilon, weight_decay: as in the paper; the decay is multiplied by the learning rate.
    """

    parameters: dict[str, jt.Var]
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self):
        self.steps = 0
        self.first = {name: jt.zeros_like(p).stop_grad() for name, p in self.parameters.items()}
        self.second = {name: jt.zeros_like(p).stop_grad() for name, p in self.parameters.items()}

    def step(self, gradients: dict[str, jt.Var], learning_rate: float) -> None:
        """One update of every parameter by its gradient, of the same shape."""
        self.steps += 1
        beta1, beta2 = self.betas
        rate = learning_rate / (1.0 - beta1**self.steps)
        correction = (1.0 - beta2**self.steps) ** 0.5
        for name, parameter in self.parameters.items():
            g = gradients[name]
            m = self.first[name] * beta1 + g * (1.0 - beta1)
            v = self.second[name] * beta2 + g * g * (1.0 - beta2)
            kept = parameter * (1.0 - learning_rate * self.weight_decay)
            self.first[name].update(m)
            self.second[name].update(v)
            parameter.update(kept - rate * m / (jt.sqrt(v) / correction + self.epsilon))
        jt.sync_all()

    def state(self) -> dict[str, np.ndarray]:
        """"first.<name>" and "second.<name>": the moments."""
        return {f"{kind}.{name}": array.numpy()
                for kind in ("first", "second") for name, array in getattr(self, kind).items()}

    def load_state(self, arrays: dict[str, np.ndarray], steps: int) -> None:
        self.steps = steps
        for kind in ("first", "second"):
            for name, array in getattr(self, kind).items():
                array.update(jt.array(arrays[f"{kind}.{name}"]))


def gradient_norm(gradients: dict[str, jt.Var]) -> float:
    """The Euclidean norm of all gradients as one vector."""
    squares = jt.stack([(g * g).sum() for g in gradients.values()]).numpy()
    return float(np.sqrt(squares.astype(np.float64).sum()))


def clip_scale(norm: float, limit: float) -> float:
    """The factor that brings a gradient of this norm to at most `limit` (Pascanu et al. 2013); 1 if `limit` is 0.

    The small constant is PyTorch's.
    """
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
