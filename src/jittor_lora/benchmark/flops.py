"""Floating-point operations of a training step, computed from sizes: a multiply-add counts as two."""

from __future__ import annotations

from collections.abc import Sequence

from jittor_lora.lora.config import DEFAULT_TARGETS
from jittor_lora.model.config import ModelConfig, tensor_shapes


def training_step(config: ModelConfig, lengths: Sequence[int], label_rows: int, rank: int) -> float:
    """Forward and backward pass of separate texts, with LoRA on the default targets.

    Counts matrix products: frozen weights forward and for the gradient of their input (they have none themselves); A
    and B forward and for both gradients; attention over the keys that each row sees; the output head at the label
    rows, forward and backward. Norms, activations, softmax and the optimiser are negligible beside these.
    """
    rows = sum(lengths)
    products = 0.0
    for name, shape in tensor_shapes(config).items():
        module = name.split(".")[-2]
        if len(shape) == 2 and module in DEFAULT_TARGETS[config.family]:
            products += 2 * shape[0] * shape[1] + 3 * rank * sum(shape)
    seen = sum(n * (n + 1) / 2 for n in lengths)
    attention = 6 * seen * config.heads * config.head_dim * config.layers  # QKᵀ and AV, once forward, twice backward
    head = 2 * label_rows * config.vocab_size * config.hidden_size
    return 2.0 * (rows * products + attention + head)


def product(m: int, k: int, n: int) -> float:
    """The product of an (m, k) and a (k, n) matrix."""
    return 2.0 * m * k * n
