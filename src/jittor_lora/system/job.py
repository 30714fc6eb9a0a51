"""The MPI job that this process is in, from what Open MPI puts into its environment. Nothing here imports Jittor."""

from __future__ import annotations

import os
import sys
import time
from typing import Mapping, NamedTuple, NoReturn

# By these variables a user tells Open MPI on which cores ranks run; else it binds each to one core, or to one socket.
BOUND = ("OMPI_MCA_hwloc_base_binding_policy", "OMPI_MCA_hwloc_base_cpu_list", "OMPI_MCA_rmaps_rank_file_path")
MAPPED = "OMPI_MCA_rmaps_base_mapping_policy"  # binds where it holds cores a rank: "slot:PE=4"
MAX_RANKS = 128  # Jittor 1.3.11 writes 8 bytes a rank past an array on its stack; what is there is not needed so far
LATER_SECONDS = 2.0  # that other ranks leave to the first one, which may have the same to say


class Job(NamedTuple):
    """Which of its processes this one is; that of one process where there is no MPI.

    Attributes:
        rank, size: in the whole job.
        local_size: processes on this host.
        placed: the user said which cores they run on.
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
    """End this process, and by that the job: mpirun ends the others when one leaves without a word to MPI.

    Python's own way out would wait in MPI for the others, which wait for this one. What concerns all ranks, such as a
    wrong setting, is said by the first: the others say what they have to say a moment later, if they still run then.
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
