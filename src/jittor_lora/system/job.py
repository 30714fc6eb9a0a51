"""This process's MPI job, from the environment variables of Open MPI. Nothing here imports Jittor."""

from __future__ import annotations

import os
import sys
import time
from typing import Mapping, NamedTuple, NoReturn

# The variables by which a user assigns cores to ranks; otherwise Open MPI binds each rank to one core or socket.
BOUND = ("OMPI_MCA_hwloc_base_binding_policy", "OMPI_MCA_hwloc_base_cpu_list", "OMPI_MCA_rmaps_rank_file_path")
MAPPED = "OMPI_MCA_rmaps_base_mapping_policy"  # assigns cores if it gives cores per rank: "slot:PE=4"
MAX_RANKS = 128  # Jittor 1.3.11 writes 8 bytes per rank past an array on its stack, harmlessly up to this many
LATER_SECONDS = 2.0  # delay of other ranks' messages, in case the first rank reports the same


class Job(NamedTuple):
    """This process's place in its MPI job; without MPI, a job of one process.

    Attributes:
        rank, size: in the whole job.
        local_size: processes on this host.
        placed: whether the user assigned cores.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    placed: bool = False

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Job:
        rank, size, local = (environ.get(f"OMPI_COMM_WORLD_{name}", "") for name in ("RANK", "SIZE", "LOCAL_SIZE"))
        if not (rank.isdigit() and size.isdigit() and local.isdigit()):
            return cls()
        return cls(int(rank), int(size), int(local),
                   any(name in environ for name in BOUND) or "PE=" in environ.get(MAPPED, "").upper())

    @property
    def several(self) -> bool:
        return self.size > 1


def current() -> Job:
    return Job.of(os.environ)


def end(job: Job, message: str, code: int) -> NoReturn:
    """End this process, and thereby the job: mpirun kills the others when one exits without finalising MPI.

    Python's normal exit would wait in MPI for the others, which wait for this one. An error that concerns all ranks,
    such as a wrong setting, is reported by the first: the others report a moment later, if they still run.
    """
    if job.rank:
        time.sleep(LATER_SECONDS)
    stream = sys.__stderr__
    if message:
        who = f"rank {job.rank} on {os.uname().nodename}: " if job.rank else ""
        stream.write(f"{who}{message}\n")
    sys.stdout.flush()
    stream.flush()
    os._exit(code)
