"""Adapters as llama.cpp's GGUF files, which `llama-cli --lora` and Ollama's ADAPTER add to a base while it runs.

Layout (llama-adapter.cpp): for each matrix NAME the tensors NAME.lora_a (r, in) and NAME.lora_b (out, r), with
llama.cpp's names and its order of B's rows; of an embedding, lora_a is (rows, r). The update is alpha / r · B A, where
r is that of the matrix and alpha one number for all. So rsLoRA's scaling is another alpha, and a matrix with a scaling
of its own has the ratio in its B.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Collection, Mapping

import numpy as np

from jittor_lora.files.atomic import atomic_write
from jittor_lora.formats.gguf import stored_form
from jittor_lora.formats.gguf_metadata import as_llama_cpp_has_it
from jittor_lora.formats.gguf_types import encode
from jittor_lora.formats.gguf_writer import TensorPlan, write_gguf
from jittor_lora.lora.combine import Factors
from jittor_lora.model.config import ModelConfig

_SAME = 1e-6  # relative; alpha is a float32


def write_gguf_adapter(path: Path, config: ModelConfig, factors: Mapping[str, Factors],
                       embeddings: Collection[str] = ()) -> None:
    """Write the file, in float32.

    Args:
        config: of the base.
        factors: module -> its update; an embedding's A is (r, rows).
        embeddings: which of the modules are embeddings.

    Raises:
        UserError: the file cannot be written, or a number is not finite; there is then no file.
    """
    config, alpha = as_llama_cpp_has_it(config), _alpha(factors)
    plans = []
    for module, pair in factors.items():
        form, rank = stored_form(f"{module}.weight", config), len(pair.a)
        ratio = pair.scaling * rank / alpha
        b = pair.b if abs(ratio - 1.0) < _SAME else pair.b * np.float32(ratio)
        arrays = {"a": pair.a.T if module in embeddings else pair.a, "b": form.rows(b)}
        plans += [TensorPlan(f"{form.name}.lora_{part}", array.shape, "F32",
                             lambda array=array, module=module: encode(module, array, "F32"))
                  for part, array in arrays.items()]
    with atomic_write(path, "wb") as stream:
        write_gguf(stream, config.family, {"general.type": "adapter", "adapter.type": "lora",
                                           "adapter.lora.alpha": float(alpha)}, plans)


def _alpha(factors: Mapping[str, Factors]) -> float:
    """The one with which most B stay as they are. Zero would mean a scaling of 1."""
    found = Counter(pair.scaling * len(pair.a) for pair in factors.values() if pair.scaling)
    return found.most_common(1)[0][0] if found else 1.0
