"""Initialisation of A and B."""

from __future__ import annotations

import zlib
from typing import Callable

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.lora.config import FAST_PISSA, LoraConfig

Pair = tuple  # (A (r, in), B (out, r)), float32


def initial_pair(config: LoraConfig, name: str, seed: int, shape: tuple[int, int],
                 weight: Callable[[], np.ndarray]) -> Pair:
    """A (r, in) and B (out, r) of a linear layer at initialisation; a pure function of the arguments.

    "gaussian" and "kaiming": A is random and B zero. "pissa" (Meng et al. 2024, eq. 2 and 3): of W = U S Vᵀ the r
    largest singular values, A = √(S_r / scaling) V_rᵀ and B = U_r √(S_r / scaling). "olora" (Büyükakyüz 2024,
    section 3): of W = Q R the first r, A = R_r and B = Q_r. The last two freeze W - scaling · B A, so that at
    initialisation the layer computes what W does.

    Args:
        name: of the module; together with `seed` it determines the random numbers, whatever else is adapted.
        shape: (out, in) of W.
        weight: returns W, float32, with the checkpoint's values; called only if the initialisation depends on it.

    Raises:
        UserError: the rank exceeds that of the decomposition.
    """
    rank = config.rank_of(name)
    if config.changes_base:
        if rank > min(shape):
            raise UserError(f"init: {config.init} of {name} has at most rank {min(shape)}, found r = {rank}. "
                            "Give this module a lower one with rank_pattern.")
        if config.init == "olora":
            return olora(weight(), rank)
        return pissa(weight(), rank, config.scaling_of(name), config.init, _generator(name, seed))
    return random_pair(config.init, rank, name, seed, shape)


def random_pair(init: str, rank: int, name: str, seed: int, shape: tuple[int, int]) -> Pair:
    """A (r, in), random by "gaussian" or "kaiming", and B (out, r), zero; see `initial_pair`."""
    draw = _generator(name, seed)
    b = np.zeros((shape[0], rank), np.float32)
    if init == "gaussian":
        return (draw.standard_normal((rank, shape[1])) / rank).astype(np.float32), b
    # kaiming_uniform with a = √5, as in PEFT: the bound is √(6 / ((1 + 5) · in)).
    bound = shape[1] ** -0.5
    return draw.uniform(-bound, bound, (rank, shape[1])).astype(np.float32), b


def initial_embedding_pair(config: LoraConfig, name: str, seed: int, rows: int, width: int) -> Pair:
    """A (r, rows), zero, and B (width, r), normal, as PEFT initialises an embedding's update."""
    rank = config.rank_of(name)
    return np.zeros((rank, rows), np.float32), _generator(name, seed).standard_normal((width, rank)).astype(np.float32)


def pissa(weight: np.ndarray, rank: int, scaling: float, init: str, draw: np.random.Generator) -> Pair:
    """A and B from the largest singular values of W (out, in)."""
    if init == "pissa":
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
    else:
        u, s, vt = largest_singular(weight, rank, int(FAST_PISSA.fullmatch(init).group(1)), draw)
    root = np.sqrt(s[:rank] / scaling)
    return ((root[:, None] * vt[:rank]).astype(np.float32), (u[:, :rank] * root).astype(np.float32))


def olora(weight: np.ndarray, rank: int) -> Pair:
    """A and B from the QR decomposition of W (out, in)."""
    q, r = np.linalg.qr(weight)
    return r[:rank].astype(np.float32), q[:, :rank].astype(np.float32)


def largest_singular(weight: np.ndarray, rank: int, iterations: int, draw: np.random.Generator):
    """Approximately the `rank` largest singular values with their vectors, as U, S, Vᵀ (Halko et al. 2011, algorithms
    4.4 and 5.1)."""
    q, _ = np.linalg.qr(weight @ draw.standard_normal((weight.shape[1], rank)).astype(np.float32))
    for _ in range(iterations):
        q, _ = np.linalg.qr(weight.T @ q)
        q, _ = np.linalg.qr(weight @ q)
    u, s, vt = np.linalg.svd(q.T @ weight, full_matrices=False)
    return q @ u, s, vt


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))
