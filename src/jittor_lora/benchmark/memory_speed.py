"""How fast this machine reads memory: the limit of decoding, which reads all weights for each token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jittor_lora.benchmark.worker import Job


class Contender:
    """
    Args:
        base, precision: not used.
    """

    def __init__(self, base: str, threads: int, precision: str):
        self.threads = threads

    def read(self, spec: dict[str, Any]) -> Job:
        """The largest of an array of integers, which costs one vector instruction per load; each thread has a part.

        Args:
            spec: gigabytes: of the array, far more than caches hold; times: how often it is read.
        """
        parts = [np.ones(int(spec["gigabytes"] * 1e9) // 4 // self.threads, np.int32) for _ in range(self.threads)]
        pool = ThreadPoolExecutor(self.threads)

        def run() -> None:
            for _ in range(spec["times"]):
                assert list(pool.map(np.max, parts)) == [1] * self.threads

        return Job(run, lambda: None)
