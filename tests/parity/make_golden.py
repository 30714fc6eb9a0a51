"""Writes tests/golden/networks.npz, what transformers and PEFT compute for the tiny models of tests/tiny.py:

    python tests/parity/make_golden.py

Its arrays, for each variant of the models: "<variant>/logits" (24, 61) of `tiny.tokens(24)`; for each family also
"<family>/loss" () and "<family>/gradient/<name>", with the adapter of `tiny.adapter_arrays` on the examples of
`tiny.groups()`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import tiny  # noqa: E402
from parity import reference  # noqa: E402


def golden() -> dict[str, np.ndarray]:
    arrays = {}
    for name, source in tiny.VARIANTS.items():
        model = reference.network(source, tiny.tensors(source))
        arrays[f"{name}/logits"] = reference.logits(model, tiny.tokens(24))
    for family in tiny.FAMILIES:
        source = tiny.VARIANTS[family]
        model = reference.network(source, tiny.tensors(source))
        adapted = reference.adapted(model, reference.default_lora(family, r=2))
        shapes = {name: tuple(p.shape) for name, p in reference.parameter_names(adapted).items()}
        values = tiny.adapter_arrays(shapes)
        parameters = reference.parameter_names(adapted)
        for parameter_name, parameter in parameters.items():
            parameter.data.copy_(reference.torch.from_numpy(values[parameter_name]))
        loss = reference.loss(adapted, tiny.groups())
        loss.backward()
        arrays[f"{family}/loss"] = loss.detach().numpy()
        arrays.update({f"{family}/gradient/{parameter_name}": parameter.grad.numpy()
                       for parameter_name, parameter in parameters.items()})
    return arrays


if __name__ == "__main__":
    np.savez_compressed(HERE.parent / "golden" / "networks.npz", **golden())
