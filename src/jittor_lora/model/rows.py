"""What a module is told about the rows it computes."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Sequence

import numpy as np

from jittor_lora.system.runtime import jt

Names = tuple  # of adapters, in the order in which they are applied


class Rows(NamedTuple):
    """The rows that a module is given.

    Attributes:
        mask_start: row of the dropout mask for the first of them; the others follow it.
        by_adapter: in a mixed batch, (names of adapters, ascending indices (n,) int32 of the rows that use them);
            None: all rows use the active adapters.
    """

    mask_start: int = 0
    by_adapter: Optional[list[tuple[Names, np.ndarray]]] = None


ALL_ALIKE = Rows()


def grouped(adapters: Sequence[str | None]) -> list[tuple[Names, np.ndarray]]:
    """`Rows.by_adapter` for one adapter name per row, None for the base alone."""
    return [(() if name is None else (name,),
             np.flatnonzero([other == name for other in adapters]).astype(np.int32))
            for name in dict.fromkeys(adapters)]


def in_order(parts: Sequence[tuple[np.ndarray, Any]]):
    """One array from several: (indices of the rows in the whole, these rows) per part."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([rows for rows, _ in parts])).astype(np.int32)
    return jt.concat([found for _, found in parts], 0)[jt.array(order)]
