"""How A and B begin."""

from __future__ import annotations

import zlib
from typing import Callable

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.lora.config import FAST_PISSA, LoraConfig

Pair = tuple  # (A (r, in), B (out, r)), float32


def initial_pair(config: LoraConfig, name: str, seed: int, shape: tuple[int, int],
          weight: Callable[[], np.ndarray]) -> Pair:
    """A (r, in) and B (out, r) at the start of training; a pure function of the arguments.

    "pissa" (Meng et al. 2024, eq. 2 and 3): of W = U S Vᵀ the r largest parts, A = √(S_r / scaling) V_rᵀ and
    B = U_r √(S_r / scaling). "olora" (Büyükakyüz 2024, section 3): of W = Q R the first r, A = R_r and B = Q_r. Both
    leave W - scaling · B A as the frozen part, so that the start computes what W does.

    Args:
        name: the module's; with `seed` it decides what is drawn, whatever else is adapted.
        shape: (out, in) of W.
        weight: gives W, float32, in the checkpoint's values.

    Raises:
        UserError: the rank is larger than a decomposition of W has.
    """
    rank = config.rank_of(name)
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))
    if config.changes_base:
        if rank > min(shape):
            raise UserError(f"init: {config.init} of {name} has at most rank {min(shape)}, found r = {rank}. "
                            "Give this module less with rank_pattern.")
        if config.init == "olora":
            return olora(weight(), rank)
        return pissa(weight(), rank, config.scaling_of(name), config.init, draw)
    b = np.zeros((shape[0], rank), np.float32)
    if config.init == "gaussian":
        return (draw.standard_normal((rank, shape[1])) / rank).astype(np.float32), b
    # kaiming_uniform with a = √5, as PEFT starts A: the bound is √(6 / ((1 + 5) · in)).
    bound = shape[1] ** -0.5
    return draw.uniform(-bound, bound, (rank, shape[1])).astype(np.float32), b


def initial_embedding_pair(config: LoraConfig, name: str, seed: int, rows: int, width: int) -> Pair:
    """A (r, rows), zero, and B (width, r), normal: how PEFT starts an embedding's update."""
    rank = config.rank_of(name)
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))
    return np.zeros((rank, rows), np.float32), draw.standard_normal((width, rank)).astype(np.float32)


def pissa(weight: np.ndarray, rank: int, scaling: float, init: str, draw: np.random.Generator) -> Pair:
    if init == "pissa":
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
    else:
        u, s, vt = largest_singular(weight, rank, int(FAST_PISSA.fullmatch(init).group(1)), draw)
    root = np.sqrt(s[:rank] / scaling)
    return ((root[:, None] * vt[:rank]).astype(np.float32), (u[:, :rank] * root).astype(np.float32))


def olora(weight: np.ndarray, rank: int) -> Pair:
    q, r = np.linalg.qr(weight)
    return r[:rank].astype(np.float32), q[:, :rank].astype(np.float32)


def largest_singular(weight: np.ndarray, rank: int, iterations: int, draw: np.random.Generator):
    """About the `rank` largest singular values with their vectors: U, S, Vᵀ (Halko et al. 2011, alg. 4.4 and 5.1)."""
    q, _ = np.linalg.qr(weight @ draw.standard_normal((weight.shape[1], rank)).astype(np.float32))
    for _ in range(iterations):
        q, _ = np.linalg.qr(weight.T @ q)
        q, _ = np.linalg.qr(weight @ q)
    u, s, vt = np.linalg.svd(q.T @ weight, full_matrices=False)
    return q @ u, s, vt
