"""What the ranks of an MPI job tell each other, through Jittor's MPI. Each method is called by all of them alike."""

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

SHOWN = 60  # letters of what differs
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


class Ranks:
    """The processes that train one adapter together, and this one's number among them.

    Everything is a sum of arrays over the ranks (`sum`), the one thing that Jittor's MPI does right for all types:
    its broadcast of a variable comes from rank 0 whatever rank is named.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Does this one write and print?"""
        return self.rank == 0

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Over all ranks, of an array of one shape and of type float32, float64 or uint8."""
        if self.size == 1:
            return array
        shared = jt.empty((array.size,), str(array.dtype))
        shared.sync()
        view = shared.data  # the variable's own memory
        view[:] = array.ravel()
        jt.compile_extern.mpi.var_all_reduce(shared)
        return view.reshape(array.shape).copy()

    def totals(self, *numbers: float) -> list[float]:
        return self.sum(np.array(numbers, np.float64)).tolist()

    def summed(self, loss: float, gradients: dict[str, jt.Var]) -> tuple[float, dict[str, jt.Var]]:
        """The sums of all parts of a loss and of its gradient, in one message."""
        if self.size == 1:
            return loss, gradients
        parts = [g.numpy().ravel() for g in gradients.values()]
        total = self.sum(np.concatenate([np.float32([loss]), *parts]))
        first, *parts = np.split(total, np.cumsum([1, *(part.size for part in parts)])[:-1])
        return float(first[0]), {name: jt.array(part.reshape(tuple(g.shape))).stop_grad()
                                 for part, (name, g) in zip(parts, gradients.items())}

    def any(self, here: bool) -> bool:
        """Is it so on any rank?"""
        return self.totals(here)[0] > 0

    def first_of_any(self, here: Any) -> Any:
        """What the first of those ranks has that have something else than None; None if there is none."""
        if not self.any(here is not None):
            return None
        return next(one for one in self.gather(here) if one is not None)

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, by rank; JSON."""
        if self.size == 1:
            return [value]
        own = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.zeros(self.size)
        lengths[self.rank] = len(own)
        ends = np.cumsum(self.sum(lengths)).astype(int).tolist()
        starts = [0, *ends[:-1]]
        whole = np.zeros(ends[-1], np.uint8)
        whole[starts[self.rank] : ends[self.rank]] = own
        whole = self.sum(whole)
        return [json.loads(whole[start:end].tobytes()) for start, end in zip(starts, ends)]

    def of_first(self, value: Any) -> Any:
        """What the first rank has; JSON."""
        return self.gather(value if self.first else None)[0]

    def arrays_of_first(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first rank's arrays, float32, bit for bit; the others have arrays of the same names and shapes."""
        if self.size == 1:
            return dict(arrays)
        found = {}
        for name, array in arrays.items():
            own = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8)
            found[name] = self.sum(own if self.first else np.zeros_like(own)).view(np.float32).reshape(array.shape)
        return found

    def share(self, items: Sequence[Any]) -> list[Any]:
        """Each item goes to one rank, in turn."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Until all are here."""
        self.totals(0.0)

    def check_same(self, what: Mapping[str, Any]) -> None:
        """
        Raises:
            UserError: these facts, by name, are not the same for all; those that differ are listed.
        """
        every = self.gather({name: str(value) for name, value in what.items()})
        wrong = [f"  {name}: {value[:SHOWN]} on rank 0, {other[name][:SHOWN]} on rank {rank}"
                 for name, value in every[0].items() for rank, other in enumerate(every) if other[name] != value]
        if wrong:
            raise UserError("The ranks do not work on the same:\n" + "\n".join(wrong[:20]) + "\n"
                            "Give all hosts the same version, base and data, on a shared folder or as copies.")


ALONE = Ranks()


@functools.lru_cache(maxsize=None)
def join() -> Ranks:
    """The ranks of this MPI job, where there is one; an error that nobody catches ends the job then.

    Raises:
        UserError: Jittor cannot be imported, or there is no MPI.
    """
    here = job.current()
    if not here.several:
        return ALONE
    found = Ranks(jt.rank, jt.world_size)
    if (found.rank, found.size) != (here.rank, here.size):
        raise UserError(f"MPI says rank {found.rank} of {found.size}, and its launcher rank {here.rank} of "
                        f"{here.size}. Start with the mpirun that belongs to the mpicc that is found first.")
    sys.excepthook = _end_of_job
    handle_by_default(CRASHES)  # Jittor's handler leaves by way of MPI, and would wait there for the other ranks
    faulthandler.enable(sys.__stderr__)
    return found


def _end_of_job(kind, error, where) -> None:
    job.end(job.current(), "".join(traceback.format_exception(kind, error, where)).rstrip(), 1)
