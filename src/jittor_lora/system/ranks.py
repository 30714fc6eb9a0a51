"""The processes that share the work of a run: a single one, or the ranks of an MPI job, through Jittor's MPI."""

from __future__ import annotations

import faulthandler
import functools
import json
import signal
import sys
import traceback
from typing import Any, Mapping, Sequence

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.system import job
from jittor_lora.system.runtime import jt
from jittor_lora.system.signals import handle_by_default

SHOWN = 60  # characters of a value that differs
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


class Ranks:
    """The processes that train one model together; this class itself is a single process, which has nobody to ask.

    Every method is collective: all ranks call it, in the same order.

    Attributes:
        rank, size: this process's number, and how many there are.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Is this the rank that writes and prints?"""
        return self.rank == 0

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum over all ranks of an array with the same shape everywhere, in float32, float64 or uint8."""
        return array

    def all_reduce_gradients(self, loss: float, gradients: dict[str, jt.Var]) -> tuple[float, dict[str, jt.Var]]:
        """The sums over all ranks of their parts of a loss and of its gradient."""
        return loss, gradients

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, as JSON, by rank."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, as JSON."""
        return value

    def broadcast_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first rank's float32 arrays, bit for bit; the other ranks give arrays of the same names and shapes."""
        return dict(arrays)

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """
        Raises:
            UserError: a fact, by name, differs between ranks; all that differ are listed.
        """

    def total(self, *numbers: float) -> list[float]:
        """The sum of each number over all ranks."""
        return self.all_reduce(np.array(numbers, np.float64)).tolist()

    def any(self, condition: bool) -> bool:
        """Does the condition hold on any rank?"""
        return self.total(condition)[0] > 0

    def first_given(self, value: Any) -> Any:
        """The value of the first rank that has one, None if all have None; JSON."""
        if not self.any(value is not None):
            return None
        return next(found for found in self.all_gather(value) if found is not None)

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's items: each goes to one rank, in turn."""
        return list(items[self.rank :: self.size])

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.total(0.0)


class MpiRanks(Ranks):
    """The ranks of an MPI job.

    Everything is an all-reduce, the one operation that Jittor's MPI gets right for all types: its broadcast of a
    variable comes from rank 0 whatever root is named.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        shared = jt.empty((array.size,), str(array.dtype))
        shared.sync()
        view = shared.data  # the variable's own memory
        view[:] = array.ravel()
        jt.compile_extern.mpi.var_all_reduce(shared)
        return view.reshape(array.shape).copy()

    def all_reduce_gradients(self, loss: float, gradients: dict[str, jt.Var]) -> tuple[float, dict[str, jt.Var]]:
        parts = [g.numpy().ravel() for g in gradients.values()]
        total = self.all_reduce(np.concatenate([np.float32([loss]), *parts]))  # in one message
        first, *parts = np.split(total, np.cumsum([1, *(part.size for part in parts)])[:-1])
        return float(first[0]), {name: jt.array(part.reshape(tuple(g.shape))).stop_grad()
                                 for part, (name, g) in zip(parts, gradients.items())}

    def all_gather(self, value: Any) -> list[Any]:
        own = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.zeros(self.size)
        lengths[self.rank] = len(own)
        ends = np.cumsum(self.all_reduce(lengths)).astype(int).tolist()
        starts = [0, *ends[:-1]]
        whole = np.zeros(ends[-1], np.uint8)
        whole[starts[self.rank] : ends[self.rank]] = own
        whole = self.all_reduce(whole)
        return [json.loads(whole[start:end].tobytes()) for start, end in zip(starts, ends)]

    def broadcast(self, value: Any) -> Any:
        return self.all_gather(value if self.first else None)[0]

    def broadcast_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for name, array in arrays.items():
            own = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8)
            total = self.all_reduce(own if self.first else np.zeros_like(own))
            found[name] = total.view(np.float32).reshape(array.shape)
        return found

    def check_same(self, facts: Mapping[str, Any]) -> None:
        every = self.all_gather({name: str(value) for name, value in facts.items()})
        wrong = [f"  {name}: {value[:SHOWN]} on rank 0, {other[name][:SHOWN]} on rank {rank}"
                 for name, value in every[0].items() for rank, other in enumerate(every) if other[name] != value]
        if wrong:
            raise UserError("The ranks do not agree on:\n" + "\n".join(wrong[:20]) + "\n"
                            "Give all hosts the same version, base and data, on a shared folder or as copies.")


ALONE = Ranks()


@functools.lru_cache(maxsize=None)
def join() -> Ranks:
    """The ranks of this MPI job, or a single process outside of one. In a job, an uncaught error ends all of it.

    Raises:
        UserError: Jittor cannot be imported, or has no MPI.
    """
    here = job.current()
    if not here.several:
        return ALONE
    found = MpiRanks(jt.rank, jt.world_size)
    if (found.rank, found.size) != (here.rank, here.size):
        raise UserError(f"MPI says rank {found.rank} of {found.size}, and its launcher rank {here.rank} of "
                        f"{here.size}. Start with the mpirun that belongs to the first mpicc on PATH.")
    sys.excepthook = _end_of_job
    handle_by_default(CRASHES)  # Jittor's handler exits through MPI, where it would wait for the other ranks
    faulthandler.enable(sys.__stderr__)
    return found


def _end_of_job(kind, error, where) -> None:
    job.end(job.current(), "".join(traceback.format_exception(kind, error, where)).rstrip(), 1)
