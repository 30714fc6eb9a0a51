"""What `jittor-lora doctor --deep` runs in a process of its own: a product, and a training step of a small network.

With a GPU, loss and gradients are compared with those of the CPU, on the same numbers.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import Stream
from jittor_lora.errors import UserError
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.config import ModelConfig, tensor_shapes
from jittor_lora.model.load import build_model
from jittor_lora.ops import bf16_works
from jittor_lora.ops.backend import kernels_work
from jittor_lora.system.runtime import jt, threads
from jittor_lora.training.gradients import batch_gradients
from jittor_lora.training.optimizer import AdamW

CONFIG = {"model_type": "gpt2", "vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 32,
          "bos_token_id": 0, "eos_token_id": 0}
LENGTHS = (9, (4, 3)), (0, (7,))  # of prefixes with their branches
BOUND = 1e-4  # float32 in another order of sums; errors of a device that computes wrongly are of the order of 1
SIZE = 512


def main() -> None:
    """Print one line of what works, or fail."""
    precisions = "fp32 and bf16" if bf16_works() else "fp32"
    kernels = f"fused kernels, {precisions}" if kernels_work() else "no fused kernels"
    device = "the GPU" if jt.flags.use_cuda else f"{threads()} threads"
    product, here = f"{SIZE}x{SIZE}x{SIZE} product in {_product_milliseconds():.1f} ms on {device}", training_step()
    if jt.flags.use_cuda:
        jt.flags.use_cuda = 0
        step = f"a training step differs from the CPU's by {compare(here, training_step()):.0e}"
    else:
        step = "a training step lowers the loss from {:.4f} to {:.4f}".format(*here["loss"])
    print(f"works; {product}; {step}; {kernels}")


def training_step() -> dict[str, np.ndarray]:
    """Loss before and after one step of AdamW ("loss"), and the gradients by name, on the current device."""
    config = ModelConfig.from_hugging_face(CONFIG, "config.json")
    draw = np.random.RandomState(0)
    tensors = {name: (draw.standard_normal(shape) * 0.2).astype(np.float32)
               for name, shape in tensor_shapes(config).items()}
    model = build_model(config, tensors)
    adapter = inject(model, LoraConfig(r=4, alpha=8.0, target_modules=DEFAULT_TARGETS["gpt2"]))
    parameters = adapter.parameters()
    adapter.load({name: (draw.standard_normal(array.shape) * 0.2).astype(np.float32)
                  for name, array in parameters.items()})
    stream = _stream(draw)
    loss, gradients = batch_gradients(model, [stream], parameters)
    values = {name: gradient.numpy() for name, gradient in gradients.items()}
    AdamW(parameters).step(gradients, 1e-3)
    after, _ = batch_gradients(model, [stream], parameters)
    return {"loss": np.array([loss, after]), **values}


def compare(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest relative difference of arrays of the same name, in the 2-norm.

    Raises:
        UserError: it is larger than `BOUND`, or not finite.
    """
    differences = {name: float(np.linalg.norm(one[name] - value) / max(np.linalg.norm(value), 1e-30))
                   for name, value in other.items()}
    wrong = {name: value for name, value in differences.items() if not value <= BOUND}
    if wrong:
        worst = max(wrong, key=lambda name: np.inf if np.isnan(wrong[name]) else wrong[name])
        raise UserError(f"the GPU computes other numbers than the CPU: {len(wrong)} of {len(differences)} arrays of a "
                        f"training step differ by more than {BOUND:g}, {worst} by {wrong[worst]:.1e}. "
                        "Compute on the CPU: export nvcc_path=")
    return max(differences.values())


def _stream(draw: np.random.RandomState) -> Stream:
    layout = Layout.of_lengths(list(LENGTHS))
    rows = np.arange(layout.rows, dtype=np.int32)
    tokens, labels = draw.randint(0, CONFIG["vocab_size"], (2, layout.rows)).astype(np.int32)
    weights = np.ones(layout.rows, np.float32)
    return Stream(tokens, rows % CONFIG["n_positions"], layout, rows, rows, labels, weights, [])


def _product_milliseconds() -> float:
    x = jt.random((SIZE, SIZE))
    (x @ x).sync()
    jt.sync_all(True)
    start = time.time()
    for _ in range(10):
        (x @ x).sync()
    jt.sync_all(True)
    return (time.time() - start) * 100


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error)
        sys.exit(1)
