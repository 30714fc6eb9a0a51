"""What can be trained: an adapter, or a whole model."""

from __future__ import annotations

from typing import Mapping, Protocol

import numpy as np

from jittor_lora.system.runtime import jt


class Trainable(Protocol):
    """Named float32 arrays of a network that take gradients."""

    def parameters(self) -> dict[str, jt.Var]:
        """The trained arrays by name, in the network's order."""

    def initial(self) -> dict[str, np.ndarray]:
        """Arrays that initialisation subtracted from the frozen weights, by name; empty if none."""

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set all of `parameters`.

        Raises:
            UserError: an array is missing, unexpected or misshapen; all are listed.
        """

    def load_initial(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set all of `initial`; raises like `load`."""

    def count(self) -> int:
        """Number of trained values."""

    def set_dropout(self, *key: int) -> None:
        """Choose the dropout masks of the next pass by these numbers; without any, switch dropout off."""
