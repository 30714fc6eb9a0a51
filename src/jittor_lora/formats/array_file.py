"""Arrays in memory as a file of tensors: those of an adapter that was turned into PEFT's form while it was read."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np

from jittor_lora.formats.safetensors_file import Entry
from jittor_lora.formats.tensor_file import TensorFile


class ArrayFile(TensorFile):
    """
    Args:
        path: the file that the arrays were read from, for messages.
        arrays: name → float array.
    """

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]):
        self.path = path
        self._arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in arrays.items()}
        self.entries = {name: Entry("F32", array.shape, 0, array.nbytes) for name, array in self._arrays.items()}

    def raw(self, name: str) -> np.ndarray:
        return self._arrays[name].reshape(-1).view(np.uint8)
