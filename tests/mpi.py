"""The command on several ranks of this machine, for tests that need Open MPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",  # in a container
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # more ranks than cores
    "use_mpi": "1",  # set to 0 by a process that imported Jittor without MPI
}


def command(ranks: int, *arguments: object, program: Path | None = None, options: tuple[str, ...] = ()) -> list[str]:
    """The command, or a program, on `ranks` ranks.

    Args:
        options: of mpirun.
    """
    what = [str(program)] if program else ["-m", "jittor_lora"]
    return ["mpirun", *options, "-np", str(ranks), sys.executable, *what, *map(str, arguments)]


def start(ranks: int, *arguments: object, program: Path | None = None, options: tuple[str, ...] = (),
          **variables: str) -> subprocess.Popen:
    """`command`, with these variables in the environment of all ranks."""
    return subprocess.Popen(command(ranks, *arguments, program=program, options=options), text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, **ENVIRONMENT, **variables})


def run(ranks: int, *arguments: object, **more) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = start(ranks, *arguments, **more)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
