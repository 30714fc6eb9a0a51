"""Combining several adapters of one base into one, as PEFT's `add_weighted_adapter` does, on numpy arrays.

The methods have PEFT's names. `linear`, `ties`, `dare_*` and `magnitude_prune` combine A and B separately, so that the
result is not a weighted sum of the updates; with `_svd` they combine the updates, and the result is the best
approximation of a given rank. `cat` and `svd` are weighted sums of the updates: `cat` exactly, at the sum of the ranks.
"""

from __future__ import annotations

import math
import zlib
from typing import Callable, Mapping, NamedTuple, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.lora.combination import Combination
from jittor_lora.lora.config import MAX_RANK


class Factors(NamedTuple):
    """A module's low-rank update, scaling · B A.

    Attributes:
        a: (r, in).
        b: (out, r).
        scaling: a number.
    """

    a: np.ndarray
    b: np.ndarray
    scaling: float

    def delta(self) -> np.ndarray:
        """scaling · B A, (out, in)."""
        return (self.b @ self.a) * np.float32(self.scaling)


def combine(adapters: Sequence[Mapping[str, Factors]], weights: Sequence[float],
            how: Combination) -> dict[str, Factors]:
    """One update, with scaling 1, for each module that any of the adapters has.

    Where only some adapters have a module, those are combined. A single adapter is combined linearly, as in PEFT.

    Raises:
        UserError: shapes or ranks do not match; all are listed.
        ValueError: the number of weights is not that of the adapters.
    """
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"{len(adapters)} adapters and {len(weights)} weights")
    method = "linear" if len(adapters) == 1 else how.method
    modules = list(dict.fromkeys(name for adapter in adapters for name in adapter))
    ranks = [max(factors.a.shape[0] for factors in adapter.values()) for adapter in adapters]
    rank = sum(ranks) if method == "cat" else how.svd_rank or max(ranks)
    _check_shapes(adapters, modules, method, rank)
    combined = {}
    for module in modules:
        present = [(i, adapter[module]) for i, adapter in enumerate(adapters) if module in adapter]
        given = np.array([weights[i] for i, _ in present], np.float32)
        draws = [_Draws(how, module, i) for i, _ in present]
        factors = [pair for _, pair in present]
        with np.errstate(over="ignore", invalid="ignore"):
            a, b = _combined(factors, given, how, method, rank, draws)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise UserError(f"{module}: the adapters' values or the weights are too large: their combination is not "
                            "finite.")
        combined[module] = Factors(np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32), 1.0)
    return combined


def _combined(factors: Sequence[Factors], weights: np.ndarray, how: Combination, method: str, rank: int,
              draws: Sequence[_Draws]) -> tuple[np.ndarray, np.ndarray]:
    """A and B of one module; not finite if numbers are too large."""
    try:
        if method == "cat":
            return _cat(factors, weights, rank)
        if method == "svd":
            return _svd_of_factors(*_cat(factors, weights, sum(f.a.shape[0] for f in factors)), rank, how.svd_clamp)
        if method.endswith("svd"):
            mixed = _mix([pair.delta() for pair in factors], weights, how, method[: -len("_svd")], draws, "delta")
            return _svd(mixed, rank, how.svd_clamp)
        return _mix_factors(factors, weights, how, method, draws)
    except np.linalg.LinAlgError:  # the input is not finite
        return np.full((rank, 1), np.inf), np.full((1, rank), np.inf)


def keep_largest(values: np.ndarray, density: float) -> np.ndarray:
    """Keep the fraction `density` of the values with the largest magnitude, set the rest to 0 (TIES, "trim":
    Yadav et al. 2023, section 3)."""
    count = int(density * values.size)
    kept = np.zeros(values.size, values.dtype)
    if count:
        flat = values.reshape(-1)
        largest = np.argpartition(np.abs(flat), values.size - count)[values.size - count:]
        kept[largest] = flat[largest]
    return kept.reshape(values.shape)


def elected(values: np.ndarray, majority: str) -> np.ndarray:
    """(n, …) bool: which values have the sign elected for their position (TIES, "elect sign").

    Args:
        values: (n, …), of n adapters.
        majority: "total", the sign of the sum; "frequency", the more frequent sign. A tie is positive.
    """
    signs = np.sign(values)
    total = (values if majority == "total" else signs).sum(axis=0)
    return signs == np.where(total >= 0, np.float32(1), np.float32(-1))


def random_mask(shape: tuple[int, ...], density: float, *key: int) -> np.ndarray:
    """1 with probability `density`, else 0, float32; a pure function of the arguments."""
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
    return (draw.random(shape, np.float32) < density).astype(np.float32)


class _Draws:
    """DARE for one adapter and module: drop values at random and rescale the rest (Yu et al. 2024, section 3)."""

    def __init__(self, how: Combination, module: str, adapter: int):
        self.how, self.key = how, (how.seed, zlib.crc32(module.encode()), adapter)

    def __call__(self, values: np.ndarray, part: str) -> np.ndarray:
        density = np.float32(self.how.density)
        mask = random_mask(values.shape, self.how.density, *self.key, ("A", "B", "delta").index(part))
        return values * mask / density


def _mix(values: list[np.ndarray], weights: np.ndarray, how: Combination, method: str, draws: Sequence[_Draws],
         part: str) -> np.ndarray:
    """The values of n adapters as one: pruned, weighted and summed, or averaged over those with the elected sign."""
    if method != "linear" and how.density < 1:
        by_chance = method.startswith("dare")
        values = [draw(v, part) if by_chance else keep_largest(v, how.density) for v, draw in zip(values, draws)]
    stacked = np.stack(values)
    weighted = stacked * weights.reshape(-1, *[1] * (stacked.ndim - 1))
    if not method.endswith("ties"):
        return weighted.sum(axis=0)
    agreeing = elected(stacked, how.majority)
    return (weighted * agreeing).sum(axis=0) / np.maximum(agreeing.sum(axis=0), 1).astype(np.float32)


def _mix_factors(factors: list[Factors], weights: np.ndarray, how: Combination, method: str,
                 draws: Sequence[_Draws]) -> tuple[np.ndarray, np.ndarray]:
    """A and B, each mixed separately with the square root of weight · scaling; the sign goes to A."""
    whole = [float(weight) * pair.scaling for weight, pair in zip(weights, factors)]
    roots = np.array([math.sqrt(abs(w)) for w in whole], np.float32)
    signs = np.array([1 if w >= 0 else -1 for w in whole], np.float32)
    return (_mix([pair.a for pair in factors], roots * signs, how, method, draws, "A"),
            _mix([pair.b for pair in factors], roots, how, method, draws, "B"))


def _cat(factors: list[Factors], weights: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of A and the columns of B concatenated, padded with zeros to `rank`."""
    a = np.concatenate([pair.a * np.float32(float(w) * pair.scaling) for w, pair in zip(weights, factors)])
    b = np.concatenate([pair.b for pair in factors], axis=1)
    missing = rank - len(a)
    return np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))


def _svd(delta: np.ndarray, rank: int, clamp: float | None) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank) with B A closest to `delta` (out, in): truncated Vᵀ and U Σ. In float64, as the
    vectors of singular values that are close together lose digits."""
    u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    return _cut(u, s, vt, rank, clamp)


def _svd_of_factors(a: np.ndarray, b: np.ndarray, rank: int, clamp: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The same for B A without forming it: B = Qb Rb, Aᵀ = Qa Ra, and Rb Raᵀ has the same singular values."""
    qb, rb = np.linalg.qr(b.astype(np.float64))
    qa, ra = np.linalg.qr(a.T.astype(np.float64))
    u, s, vt = np.linalg.svd(rb @ ra.T)
    return _cut(qb @ u[:, : len(s)], s, vt[: len(s)] @ qa.T, rank, clamp)


def _cut(u: np.ndarray, s: np.ndarray, vt: np.ndarray, rank: int,
         clamp: float | None) -> tuple[np.ndarray, np.ndarray]:
    a, b = vt[:rank].astype(np.float32), (u[:, :rank] * s[:rank]).astype(np.float32)
    if clamp is not None:
        bound = np.float32(np.quantile(np.concatenate([b.reshape(-1), a.reshape(-1)]), clamp))
        # If the quantile is below 0, the interval is empty and all values become its upper end, as in torch.
        a, b = (np.minimum(np.maximum(x, -bound), bound) for x in (a, b))
    missing = rank - len(a)
    return np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))


def _check_shapes(adapters: Sequence[Mapping[str, Factors]], modules: Sequence[str], method: str, rank: int) -> None:
    wrong = []
    together: Callable[[Factors], tuple] = (
        (lambda f: (f.a.shape[1], len(f.b))) if method == "cat" or method.endswith("svd") else
        (lambda f: (f.a.shape[1], len(f.b), len(f.a))))
    for module in modules:
        shapes = list(dict.fromkeys(together(adapter[module]) for adapter in adapters if module in adapter))
        if len(shapes) > 1:
            names = ("in", "out", "rank")
            wrong.append(f"{module}: " + " against ".join(
                ", ".join(f"{name} {size}" for name, size in zip(names, shape)) for shape in shapes))
    if wrong:
        hint = ("" if any(len({together(a[m])[:2] for a in adapters if m in a}) > 1 for m in modules) else
                f" {method} needs equal ranks; cat and the methods that end in svd do not.")
        raise UserError("The adapters' matrices do not match:\n  " + "\n  ".join(wrong[:20]) +
                        (f"\n  … and {len(wrong) - 20} more" if len(wrong) > 20 else "") +
                        (hint and "\n" + hint.strip()))
    if rank > MAX_RANK:
        raise UserError(f"The combination would have rank {rank}; expected at most {MAX_RANK}. Use svd with svd_rank.")
