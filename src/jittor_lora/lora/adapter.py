"""One adapter: its trained arrays, over all modules of a network."""

from __future__ import annotations

import zlib
from typing import Iterator, Mapping, Sequence, Union

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.lora.adapted import TrainableCopy
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.embedding import EmbeddingUpdate
from jittor_lora.lora.layer import Update
from jittor_lora.system.runtime import jt

Version = Union[Update, EmbeddingUpdate, TrainableCopy]  # or another of `kinds.KINDS`


class Adapter:
    """One adapter of a network; `lora.inject` creates it.

    Args:
        name: by which it is activated.
        config: its settings.
        versions: module name → its version of that module: an update or a trainable copy; in the network's order.
    """

    def __init__(self, name: str, config: LoraConfig, versions: dict[str, Version]):
        self.name, self.config, self.versions = name, config, versions

    @property
    def updates(self) -> dict[str, Update | EmbeddingUpdate]:
        """Module name → this adapter's low-rank update of it."""
        return {name: version for name, version in self.versions.items() if not isinstance(version, TrainableCopy)}

    def parameters(self) -> dict[str, jt.Var]:
        """The trained arrays in the network's order: "<module>.lora_A" (r, in), ".lora_B" (out, r),
        ".lora_magnitude_vector" (out,), ".lora_B_bias" (out,), ".bias" (out,), ".lora_embedding_A" (r, rows),
        ".lora_embedding_B" (D, r), and ".weight" of modules that are trained whole, matrices as (out, in)."""
        return {f"{name}.{part}": array for name, version in self.versions.items()
                for part, array in version.trained.items()}

    def arrays(self) -> dict[str, jt.Var]:
        """The trained arrays, and those that modules which are trained whole change by themselves, such as running
        statistics ("<module>.running_mean")."""
        states = {f"{name}.{part}": array for name, version in self.versions.items()
                  if isinstance(version, TrainableCopy) for part, array in version.state().items()}
        return {**self.parameters(), **states}

    def initial(self) -> dict[str, np.ndarray]:
        """The initial A and B that were subtracted from the base's weights (PiSSA, OLoRA): "<module>.lora_A",
        "<module>.lora_B"; else empty."""
        return {name: array.numpy() for name, array in self._initial().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set all trained arrays; names and shapes as in `parameters`.

        Raises:
            UserError: an array is missing, unexpected or misshapen; all are listed.
        """
        set_arrays(self.parameters(), arrays)

    def load_initial(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set what was subtracted from the base's weights; names and shapes as in `initial`.

        Raises:
            UserError: as `load`.
        """
        set_arrays(self._initial(), arrays)

    def count(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(p.shape)) for p in self.parameters().values())

    def set_dropout(self, *key: int) -> None:
        """Choose the dropout masks of the next passes by these numbers (seed, step, stream); without numbers, switch
        dropout off."""
        for name, update in self._linear_updates():
            update.dropout_seed = mixed_seed(*key, zlib.crc32(f"{self.name} {name}".encode())) if key else None

    def _initial(self) -> dict[str, jt.Var]:
        return {f"{name}.{part}": array for name, update in self._linear_updates()
                for part, array in zip(("lora_A", "lora_B"), update.initial or ())}

    def _linear_updates(self) -> Iterator[tuple[str, Update]]:
        return ((name, version) for name, version in self.versions.items() if isinstance(version, Update))


def check_fit(shapes: Mapping[str, Sequence[int]], arrays: Mapping[str, np.ndarray]) -> None:
    """
    Args:
        shapes: of the arrays expected, by name.

    Raises:
        UserError: an array is missing, unexpected or misshapen; all are listed.
    """
    missing = [f"{name}: missing" for name in shapes if name not in arrays]
    unknown = [f"{name}: no such module is adapted" for name in arrays if name not in shapes]
    misshapen = [f"{name}: expected shape {tuple(shape)}, found {tuple(arrays[name].shape)}"
                 for name, shape in shapes.items() if name in arrays and tuple(shape) != tuple(arrays[name].shape)]
    if missing or unknown or misshapen:
        wrong = "\n  ".join(some_of_each(missing, unknown, misshapen))
        raise UserError(f"The adapter does not fit the model:\n  {wrong}\n"
                        "Load it with the base model and the target modules it was trained with.")


def set_arrays(arrays: Mapping[str, jt.Var], values: Mapping[str, np.ndarray]) -> None:
    """Set all arrays in place.

    Raises:
        UserError: as `check_fit`.
    """
    check_fit({name: array.shape for name, array in arrays.items()}, values)
    for name, array in arrays.items():
        value = jt.array(np.ascontiguousarray(values[name], np.float32))
        array.update(value.stop_grad() if array.is_stop_grad() else value)


def mixed_seed(*key: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence([k & 0xFFFFFFFFFFFFFFFF for k in key]).generate_state(1)[0]) >> 1
