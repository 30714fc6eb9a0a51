"""Low-rank updates as loralib's `lora_state_dict(model)`; `formats/loralib_file.py` describes the files.

An update of c_attn, B A with B (3 D, r), is written as loralib's MergedLinear wants it, A (g r', in) and B (g D, r'):

- if B's g blocks of r' columns each have rows in one of queries, keys and values alone, in this order: A as it is, and
  the blocks below each other. What `read_loralib` made of a file becomes that file again, bit for bit.
- otherwise the g thirds with rows other than zero share A, which is repeated: r' = r.
- if all three share A, as `lora.Linear` with r, unless the parts are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, NamedTuple, Optional

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.atomic import atomic_write
from jittor_lora.files.finite import not_finite
from jittor_lora.formats.loralib_file import FUSED, PARTS, placed
from jittor_lora.formats.low_rank import last_part, place
from jittor_lora.formats.torch_writer import write_torch
from jittor_lora.lora.combine import Factors

_DEFAULT = "qv"  # of updates that are zero: those of loralib's examples


class Written(NamedTuple):
    """What loralib's layers need to load the file.

    Attributes:
        ranks: r by kind of module, such as attn.c_attn; several for a kind whose blocks differ.
        alpha: lora_alpha of all of them.
        enabled: parts of c_attn that its MergedLinear updates, such as "qv"; None for `lora.Linear`, or no c_attn.
    """

    ranks: dict[str, list[int]]
    alpha: float
    enabled: Optional[str]


def write_loralib(path: Path, factors: Mapping[str, Factors], enabled: str | None = None) -> Written:
    """Write updates in float32, blocks in order. Scalings other than that of the first module are multiplied into B.

    Args:
        enabled: write c_attn as a MergedLinear that updates these parts; by default those that some block updates.

    Raises:
        UserError: a c_attn updates other parts too, or numbers are not finite; all offenders are listed.
    """
    modules = sorted(factors, key=lambda module: (place(module)[0] is None, place(module)[0] or 0, module))
    fused = [module for module in modules if _is_fused(module, factors[module])]
    wrong = [f"{name}: holds numbers that are not finite ({what})" for name, what in not_finite(
        {f"{module}.{part}": array for module in modules for part, array in
         (("A", factors[module].a), ("B", factors[module].b))}).items()]
    if enabled is not None:
        wrong += [f"{module}: also updates {', '.join(others)}, which are not enabled" for module in fused
                  for others in [[part for part in _used(factors[module].b) if part not in enabled]] if others]
        wrong += [] if fused else [f"there is no update of {FUSED}, whose parts --enable-lora names"]
    if wrong:
        raise UserError("\n  ".join([f"{path}:", *some_of_each(wrong)]))
    parts = _parts(enabled, [factors[module] for module in fused])
    pairs = {module: _merged(factors[module], parts) if module in fused and parts else factors[module]
             for module in modules}
    alpha = float(f"{len(pairs[modules[0]].b.T) * pairs[modules[0]].scaling:.9g}")
    ranks: dict[str, set[int]] = {}
    arrays: dict[str, np.ndarray] = {}
    for module, (a, b, scaling) in pairs.items():
        rank = b.shape[1]
        ranks.setdefault(place(module)[1], set()).add(rank)
        same = np.isclose(scaling * rank, alpha, rtol=1e-8)
        arrays[f"{module}.lora_A"] = a
        arrays[f"{module}.lora_B"] = b if same else b * np.float32(scaling * rank / alpha)
    with atomic_write(path, "wb") as stream:
        write_torch(stream, None, arrays)
    return Written({kind: sorted(found) for kind, found in ranks.items()}, alpha, parts)


def _parts(enabled: str | None, fused: list[Factors]) -> str | None:
    """The parts of a MergedLinear, the same in all blocks; None for a plain layer, or no c_attn."""
    if enabled is not None or not fused:
        return enabled
    used = {part for pair in fused for part in _used(pair.b)}
    parts = "".join(part for part in PARTS if part in used) or _DEFAULT
    return None if parts == PARTS and not all(_is_diagonal(pair.b, parts) for pair in fused) else parts


def _is_fused(module: str, pair: Factors) -> bool:
    return last_part(module) == FUSED and len(pair.b) == len(PARTS) * pair.a.shape[1]


def _used(b: np.ndarray) -> list[str]:
    """The thirds of B that have numbers other than zero."""
    return [part for part, rows in zip(PARTS, np.split(b, len(PARTS))) if rows.any()]


def _merged(pair: Factors, parts: str) -> Factors:
    """A and B as in the file; the scaling is that of one part."""
    thirds = dict(zip(PARTS, np.split(pair.b, len(PARTS))))
    if not _is_diagonal(pair.b, parts):
        return Factors(np.tile(pair.a, (len(parts), 1)), np.concatenate([thirds[part] for part in parts]), pair.scaling)
    rank = len(pair.a) // len(parts)
    return Factors(pair.a, _blocks(pair.b, parts, rank), pair.scaling)


def _blocks(b: np.ndarray, parts: str, rank: int) -> np.ndarray:
    thirds = dict(zip(PARTS, np.split(b, len(PARTS))))
    return np.concatenate([thirds[part][:, i * rank : (i + 1) * rank] for i, part in enumerate(parts)])


def _is_diagonal(b: np.ndarray, parts: str) -> bool:
    """Is B zero outside each part's own rows and columns?"""
    rank, rest = divmod(b.shape[1], len(parts))
    return not rest and np.array_equal(b, placed(_blocks(b, parts, rank), parts))
